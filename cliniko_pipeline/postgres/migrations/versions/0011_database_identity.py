"""Which database this is: a copy of it is to send nothing."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

CREATE = """
create table cliniko.database_identity (
    is_only_row boolean primary key default true check (is_only_row),
    identity text not null,
    adopted_at timestamptz not null default now()
);
"""


def upgrade() -> None:
    """Create cliniko.database_identity."""
    op.execute(CREATE)
