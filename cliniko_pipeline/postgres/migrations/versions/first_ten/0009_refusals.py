"""Since when Cliniko refuses an organization's credentials: the first refusal may pass, and pauses nothing."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

CHANGE_SCHEDULING = """
alter table cliniko.scheduling
    add column refused_at timestamptz,
    add column refused_run_id text,
    -- The digest of the credentials that were refused, as in paused_credentials.
    add column refused_credentials text;
"""


def upgrade() -> None:
    """Add the columns to cliniko.scheduling."""
    op.execute(CHANGE_SCHEDULING)
