"""The condition of the operator's that contacts must meet: no row where all of them count."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

CREATE = """
create table cliniko.contacts_filter (
    is_only_row boolean primary key default true check (is_only_row),
    condition text not null
);
"""


def upgrade() -> None:
    """Create cliniko.contacts_filter."""
    op.execute(CREATE)
