"""Who may use the HTTP API, what attempts failed, and how far a sync under way has come."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

CHANGE_SYNC_RUNS = """
alter table cliniko.sync_runs
    -- Whether it reads everything; null: a run of before this column.
    add column is_full boolean,
    -- What it is doing: resource, records read of how many, requests so far, and when that was noted.
    add column progress jsonb;
"""

# The operator's own, like cliniko.scheduling: nothing of a patient.
CREATE_TABLES = """
create table cliniko.api_tokens (
    id text collate "C" primary key,
    name text not null,
    -- SHA-256 of the whole token, which is random: nothing leads back from it.
    digest bytea not null,
    scopes text[] not null check (scopes <@ array['read', 'sync', 'admin'] and cardinality(scopes) > 0),
    -- Null: all of them, those added later too.
    organizations text[],
    -- Null: as many as the settings say.
    requests_per_minute integer check (requests_per_minute > 0),
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz
);

-- Requests that were refused, counted by the minute: whoever tries a thousand times makes one row, not a thousand.
create table cliniko.api_refusals (
    minute timestamptz not null,
    reason text not null,
    -- Of the token, where it is a known one; otherwise blank.
    token_id text collate "C" not null,
    address text not null,
    method text not null,
    route text not null,
    organization_id text not null,
    attempts bigint not null default 1,
    last_at timestamptz not null default now(),
    primary key (minute, reason, token_id, address, method, route, organization_id)
);
"""

# A page of active_patients is read from where the one before it ended, whatever it is sorted by. What pages can be
# filtered by stands in every index, so that rows that are left out are not looked at.
CREATE_INDEXES = """
create index if not exists active_patients_contact_idx
    on public.active_patients (organization_id, contact_id, last_appointment_date, upcoming_appointment_count);
create index if not exists active_patients_last_appointment_idx
    on public.active_patients (organization_id, last_appointment_date, contact_id, upcoming_appointment_count);
create index if not exists active_patients_recent_idx on public.active_patients
    (organization_id, recent_appointment_count, contact_id, last_appointment_date, upcoming_appointment_count);
create index if not exists active_patients_upcoming_idx on public.active_patients
    (organization_id, upcoming_appointment_count, contact_id, last_appointment_date);
create index if not exists active_patients_total_idx on public.active_patients
    (organization_id, total_appointment_count, contact_id, last_appointment_date, upcoming_appointment_count);
"""


def upgrade() -> None:
    """Leaves all data as they are."""
    op.execute(CHANGE_SYNC_RUNS)
    op.execute(CREATE_TABLES)
    op.execute(CREATE_INDEXES)
