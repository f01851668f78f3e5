"""The number of active patients at the end of each day, for as long as the trend shows it."""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

CREATE = """
-- The days whose last sync was deleted from cliniko.sync_runs. The times are those of that sync.
create table cliniko.daily_active_patients (
    organization_id text not null,
    day date not null,
    active_patients bigint not null,
    started_at timestamptz not null,
    finished_at timestamptz not null,
    primary key (organization_id, day)
);
"""


def upgrade() -> None:
    """Create cliniko.daily_active_patients."""
    op.execute(CREATE)
