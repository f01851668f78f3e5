"""The tenant tables. `schema` puts them under row-level security in the same transaction."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

CREATE_TABLES = """
create table cliniko.patients (
    organization_id text not null,
    id text collate "C" not null,
    first_name text,
    last_name text,
    email text,
    archived_at timestamptz,
    deleted_at timestamptz,
    merged_at timestamptz,
    merged_into_id text collate "C",
    created_at timestamptz not null,
    updated_at timestamptz not null,
    synced_at timestamptz not null default now(),
    primary key (organization_id, id)
);

create table cliniko.appointments (
    organization_id text not null,
    kind text collate "C" not null check (kind in ('individual', 'group')),
    id text collate "C" not null,
    patient_id text collate "C",
    appointment_type_id text collate "C",
    practitioner_id text collate "C",
    starts_at timestamptz not null,
    ends_at timestamptz,
    cancelled_at timestamptz,
    archived_at timestamptz,
    deleted_at timestamptz,
    did_not_arrive boolean not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    synced_at timestamptz not null default now(),
    primary key (organization_id, kind, id)
);

create table cliniko.attendees (
    organization_id text not null,
    id text collate "C" not null,
    booking_id text collate "C",
    patient_id text collate "C",
    arrived boolean,
    cancelled_at timestamptz,
    archived_at timestamptz,
    deleted_at timestamptz,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    synced_at timestamptz not null default now(),
    primary key (organization_id, id)
);

create table cliniko.appointment_types (
    organization_id text not null,
    id text collate "C" not null,
    name text,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    synced_at timestamptz not null default now(),
    primary key (organization_id, id)
);

create table cliniko.practitioners (
    organization_id text not null,
    id text collate "C" not null,
    name text,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    synced_at timestamptz not null default now(),
    primary key (organization_id, id)
);

create table cliniko.contact_mapping (
    organization_id text not null,
    patient_id text collate "C" not null,
    contact_id uuid,
    status text not null check (status in ('matched', 'ambiguous', 'unmatched')),
    method text check (method in ('cliniko_patient_id', 'email', 'name')),
    candidate_count integer,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (organization_id, patient_id),
    check ((status = 'matched') = (contact_id is not null)),
    -- Deferred: within one merge a contact may pass from one patient to another.
    unique (organization_id, contact_id) deferrable initially deferred
);

-- How far the last reading of each of an account's resources came.
create table cliniko.crawls (
    organization_id text not null,
    resource text not null,
    started_at timestamptz not null,
    completed_at timestamptz,
    records bigint not null default 0,
    primary key (organization_id, resource)
);

-- Records of the last reading that could not be understood. No patient data beyond the id.
create table cliniko.rejected_records (
    organization_id text not null,
    resource text not null,
    position bigint not null,
    id text,
    reason text not null,
    rejected_at timestamptz not null default now(),
    primary key (organization_id, resource, position)
);

create table cliniko.sync_runs (
    organization_id text not null,
    run_id text not null,
    planned text[] not null,
    status text not null check (status in ('running', 'succeeded', 'failed')),
    started_at timestamptz not null default now(),
    finished_at timestamptz,
    assets jsonb not null default '{}',
    requests bigint not null default 0,
    seconds_waited double precision not null default 0,
    error text,
    primary key (organization_id, run_id)
);

create index sync_runs_started_at_idx on cliniko.sync_runs (organization_id, started_at desc);

create table if not exists public.active_patients (
    id bigserial not null,
    contact_id uuid not null,
    recent_appointment_count integer not null,
    upcoming_appointment_count integer not null,
    total_appointment_count integer not null,
    last_appointment_date timestamp,
    recent_appointments jsonb,
    upcoming_appointments jsonb,
    search_date_from timestamp,
    search_date_to timestamp,
    organization_id text,
    created_at timestamp,
    updated_at timestamp
);

-- An older sync may have left a contact twice; the first row, whose id others may know, stays.
delete from public.active_patients as row
using public.active_patients as earlier
where earlier.organization_id = row.organization_id
    and earlier.contact_id = row.contact_id
    and earlier.id < row.id;

create unique index if not exists active_patients_organization_id_contact_id_key
    on public.active_patients (organization_id, contact_id);
"""


def upgrade() -> None:
    """Creates what the first version needs; an `active_patients` of the operator's is kept with its rows."""
    op.execute(CREATE_TABLES)
