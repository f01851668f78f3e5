"""The time zone that an organization's full syncs go by; null: UTC, as all of them did before."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add cliniko.scheduling.time_zone."""
    op.execute("alter table cliniko.scheduling add column time_zone text")
