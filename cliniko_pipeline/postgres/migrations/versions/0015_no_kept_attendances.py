"""`active_patients` is computed at every sync: attendances are no longer kept in between."""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drop cliniko.current_attendances, and the instant that it was computed for."""
    op.execute("drop table cliniko.current_attendances")
    op.execute("alter table cliniko.table_states drop column as_of")
