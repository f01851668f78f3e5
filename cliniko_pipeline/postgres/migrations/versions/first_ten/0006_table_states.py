"""What is known of each organization's tables, so that nothing is computed again that would come out the same."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

CREATE_TABLES = """
-- A row an organization and table; the triggers of `watch` keep version and row_count.
create table cliniko.table_states (
    organization_id text not null,
    name text collate "C" not null,
    -- Another one after each change of the organization's rows.
    version uuid not null default gen_random_uuid(),
    -- Null: not counted yet.
    row_count bigint,
    -- Of a computed table: what from, and the instant judged by, if any. Null: not known.
    computed_from jsonb,
    as_of timestamptz,
    -- What was counted and checked, each with what it was found from.
    findings jsonb not null default '{}',
    primary key (organization_id, name)
);

-- What counts now or may yet, by itself; what is earlier than that, as one row a person.
create table cliniko.current_attendances (
    organization_id text not null,
    person_id text collate "C" not null,
    kind text collate "C" not null check (kind in ('individual', 'group', 'earlier')),
    id text collate "C" not null,
    contact_id uuid not null,
    starts_at timestamptz check ((kind = 'earlier') = (starts_at is null)),
    ends_at timestamptz,
    appointment_type_id text collate "C",
    practitioner_id text collate "C",
    did_not_arrive boolean not null,
    attendances integer not null,
    computed_at timestamptz not null default now(),
    primary key (organization_id, person_id, kind, id)
);

-- Who has no contact is listed, a hundred at a time.
create index contact_mapping_without_contact_idx
    on cliniko.contact_mapping (organization_id, status, length(patient_id), patient_id) where status <> 'matched';
"""


def upgrade() -> None:
    """Creates what is needed; the first sync afterwards computes everything."""
    op.execute(CREATE_TABLES)
