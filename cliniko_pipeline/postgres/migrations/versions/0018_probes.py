"""Organizations have the instant for which their rows are known to be right."""

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

STATEMENTS = """
alter table cliniko.scheduling add column verified_at timestamptz;
update cliniko.scheduling set verified_at = succeeded_at;
-- The instant that a computed table was computed for, and the first later instant at which its rows may differ.
alter table cliniko.table_states add column as_of timestamptz, add column next_change_at timestamptz;
"""


def upgrade() -> None:
    """Add the columns. Every stored success has verified its organization."""
    op.execute(STATEMENTS)
