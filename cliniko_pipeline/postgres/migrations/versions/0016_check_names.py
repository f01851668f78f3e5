"""The asset check `is_not_older_than_promised` is called `is_fresh`."""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Rename the check in stored results and open alerts."""
    op.execute("update cliniko.check_results set name = 'is_fresh' where name = 'is_not_older_than_promised'")
    op.execute(
        "update cliniko.alerts set name = 'active_patients is_fresh'"
        " where name = 'active_patients is_not_older_than_promised'"
    )
