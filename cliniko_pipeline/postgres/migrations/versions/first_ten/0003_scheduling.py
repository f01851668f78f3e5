"""When each organization is synced, and which ones wait for the operator."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

CREATE_TABLES = """
-- The operator's own: nothing of a patient is in it, and whoever schedules must see all organizations at once. So no
-- row-level security, and the organizations' role has no right to it.
create table cliniko.scheduling (
    organization_id text primary key,
    -- Null: as the deployment's settings say.
    is_on boolean,
    sync_every_minutes integer check (sync_every_minutes between 1 and 1440),
    full_sync_at time,
    -- When a run was last requested by the schedule.
    requested_at timestamptz,
    full_requested_at timestamptz,
    -- How often in a row a sync has failed for a reason that passes, and when it is tried again.
    failures integer not null default 0,
    retry_at timestamptz,
    -- Why nothing is requested any more until the credentials change or the organization is enabled again.
    paused_at timestamptz,
    pause_reason text,
    paused_credentials text,
    check ((paused_at is null) = (pause_reason is null))
);
"""


def upgrade() -> None:
    """Creates what scheduling needs; nothing is there before."""
    op.execute(CREATE_TABLES)
