"""Which runs are alive: whatever machine and Dagster home a run has, its process says so here."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

CREATE = """
create table cliniko.run_heartbeats (
    run_id text primary key,
    -- How another process on the same machine recognizes the run's; null: none has been heard of.
    process text,
    beat_at timestamptz not null default clock_timestamp(),
    -- When the last beat was first seen to be too long ago.
    doubted_at timestamptz
);
"""


def upgrade() -> None:
    """Create cliniko.run_heartbeats."""
    op.execute(CREATE)
