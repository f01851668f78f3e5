"""Webhooks: what was announced by relays and is not synced yet, and who is told of syncs that have ended."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

CHANGE_SCHEDULING = """
alter table cliniko.scheduling
    -- When the last whole sync that succeeded began to read: it knows of all that was announced before.
    add column read_began_at timestamptz;
"""

# The operator's own, like cliniko.scheduling: nothing of a patient.
CREATE_TABLES = """
create table cliniko.webhook_secrets (
    id text collate "C" primary key,
    organization_id text collate "C" not null,
    -- By the vault, as credentials are.
    encrypted jsonb not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz
);
create index webhook_secrets_organization_idx on cliniko.webhook_secrets (organization_id);

-- That something has changed in an organization's account. Not what the relay sent: that may be of a patient.
create table cliniko.webhook_events (
    organization_id text collate "C" not null,
    message_id text collate "C" not null check (length(message_id) between 1 and 256),
    received_at timestamptz not null default now(),
    type text check (length(type) <= 64),
    primary key (organization_id, message_id)
);
create index webhook_events_organization_idx on cliniko.webhook_events (organization_id, received_at);
create index webhook_events_received_idx on cliniko.webhook_events (received_at);

create table cliniko.webhook_targets (
    organization_id text collate "C" primary key,
    -- The URL and the signing secret, by the vault.
    encrypted jsonb not null,
    -- Runs that ended before that are not told.
    set_at timestamptz not null default now(),
    -- All runs that began before that were put down, if they were to be.
    looked_until timestamptz not null default now(),
    disabled_at timestamptz,
    disabled_reason text
);

create table cliniko.webhook_deliveries (
    -- In the order in which they are first sent.
    position bigint generated always as identity,
    organization_id text collate "C" not null,
    run_id text collate "C" not null,
    body text not null,
    created_at timestamptz not null default now(),
    attempts integer not null default 0,
    -- When it is to be sent (again); null: it is not.
    send_at timestamptz default now(),
    ended_at timestamptz,
    is_taken boolean not null default false,
    -- What came of the last attempt, e.g. `HTTP 503`.
    outcome text,
    primary key (organization_id, run_id)
);
create index webhook_deliveries_waiting_idx on cliniko.webhook_deliveries (send_at) where send_at is not null;
"""


def upgrade() -> None:
    """Leaves all data as they are."""
    op.execute(CHANGE_SCHEDULING)
    op.execute(CREATE_TABLES)
