"""The fields by which Cliniko refuses to sort or filter an organization's lists."""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add refused_fields to cliniko.crawls."""
    op.execute("alter table cliniko.crawls add column refused_fields text[] not null default '{}'")
