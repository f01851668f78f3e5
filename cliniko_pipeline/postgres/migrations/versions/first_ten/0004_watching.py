"""What is wrong with each organization, what was told of it, and to whom it is still to be told."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

CHANGE_SCHEDULING = """
alter table cliniko.scheduling
    add column known_since timestamptz not null default now(),
    -- When a sync of everything last succeeded.
    add column succeeded_at timestamptz,
    -- What the last failed run, since then, said; whether trying again mends it.
    add column failure_reason text,
    add column failed_run_id text,
    add column failure_is_permanent boolean not null default false,
    -- When the numbers of records were last compared with Cliniko's.
    add column counts_requested_at timestamptz;
update cliniko.scheduling set failure_reason = pause_reason, failure_is_permanent = true where paused_at is not null;
"""

# The operator's own, like cliniko.scheduling: numbers and reasons, nothing of a patient.
CREATE_TABLES = """
-- The last result of each check.
create table cliniko.check_results (
    organization_id text not null,
    asset text not null,
    name text not null,
    holds boolean not null,
    remark text not null,
    run_id text,
    checked_at timestamptz not null default now(),
    primary key (organization_id, asset, name)
);

-- What is wrong, and was told.
create table cliniko.alerts (
    organization_id text not null,
    name text not null,
    kind text not null,
    reason text not null,
    raised_at timestamptz not null,
    told_at timestamptz not null,
    primary key (organization_id, name)
);

-- What is still to be sent, a row a channel; sent ones go. The channel is a digest: its URL holds secrets.
create table cliniko.notices (
    id bigint generated always as identity primary key,
    channel text not null,
    kind text not null,
    title text not null,
    body text not null,
    created_at timestamptz not null default now(),
    attempts integer not null default 0,
    send_at timestamptz not null default now()
);
"""


def upgrade() -> None:
    """Adds to what scheduling knows, and creates the rest."""
    op.execute(CHANGE_SCHEDULING)
    op.execute(CREATE_TABLES)
