"""Made-up clinics in set-based SQL, and the statement for `active_patients` that a person would write by hand.

The same numbers always give the same rows.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cliniko_pipeline.postgres import tables
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.writing import derivations
from cliniko_pipeline.postgres.writing.derivations import Derivation
from cliniko_pipeline.postgres.writing.merge import replace_by_query

ORGANIZATION = "clinic"
AS_OF = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
ACTIVITY_WINDOW = timedelta(days=60)
CLASS_SIZE = 6

# Every tenth patient has a name that is not ASCII, every eighth has no e-mail address, every fiftieth is archived. Each
# has a contact. Appointments begin at half hours; 8 % are cancelled, 4 % were no-shows, 1 % deleted.
CLINIC = """
select setseed(0.5);

insert into cliniko.appointment_types (organization_id, id, name, created_at, updated_at)
select '{organization_id}', n::text, 'Consultation ' || n, timestamptz '2023-06-01', timestamptz '2023-06-01'
from generate_series(1, 2) as n on conflict do nothing;
insert into cliniko.practitioners (organization_id, id, name, created_at, updated_at)
select '{organization_id}', n::text, 'Practitioner ' || n, timestamptz '2023-06-01', timestamptz '2023-06-01'
from generate_series(1, 5) as n on conflict do nothing;

insert into cliniko.patients (organization_id, id, first_name, last_name, email, archived_at, created_at, updated_at)
select
    '{organization_id}',
    (1300000000000000000 + n)::text,
    case when n % 10 = 0 then 'Zoë-Renée ' else 'Alexandra ' end || n % 1000,
    case when n % 10 = 0 then 'Müller-Ångström ' else 'Featherstone ' end || n / 1000,
    case when n % 8 > 0 then 'Person.' || n || '@Example.com' end,
    case when n % 50 = 7 then timestamptz '2026-01-01' end,
    timestamptz '2023-06-01',
    timestamptz '2026-01-01'
from generate_series({first}, {first} + {patients} - 1) as n;

insert into public.contacts (id, organization_id, cliniko_patient_id, name, first_name, last_name, email)
select
    md5(organization_id || ' contact ' || id)::uuid, organization_id, id, concat_ws(' ', first_name, last_name),
    first_name, last_name, email
from cliniko.patients
where organization_id = '{organization_id}' and id >= (1300000000000000000 + {first})::text
order by md5(id);

insert into cliniko.appointments
    (organization_id, kind, id, patient_id, appointment_type_id, practitioner_id, starts_at, ends_at, cancelled_at,
    deleted_at, did_not_arrive, created_at, updated_at)
select
    '{organization_id}',
    case when number >= {classes} then 'individual' else 'group' end,
    (2600000000000000000 + {first} + number)::text,
    case when number >= {classes} then (1300000000000000000 + {first} + floor(patient * {patients})::bigint)::text end,
    (1 + number % 2)::text,
    (1 + number % 5)::text,
    starts_at,
    starts_at + interval '30 minutes',
    case when number >= {classes} and fate < 0.08 then starts_at - interval '2 days' end,
    case when fate between 0.12 and 0.13 then starts_at - interval '3 days' end,
    number >= {classes} and fate between 0.08 and 0.12 and starts_at <= '{as_of}',
    starts_at - interval '30 days',
    least(starts_at, '{as_of}'::timestamptz - interval '1 day')
from (
    select
        number,
        '{as_of}'::timestamptz + floor(random() * {days} * 48) * interval '30 minutes' - interval '{days_ago} days'
            as starts_at,
        random() as patient,
        random() as fate
    from generate_series(0, {appointments} - 1) as number
) as visit;

insert into cliniko.attendees
    (organization_id, id, booking_id, patient_id, arrived, cancelled_at, created_at, updated_at)
select
    '{organization_id}',
    (3900000000000000000 + ({first} + number) * 100 + place)::text,
    (2600000000000000000 + {first} + number)::text,
    (1300000000000000000 + {first} + floor(random() * {patients})::bigint)::text,
    random() > 0.04,
    case when random() < 0.05 then timestamptz '2026-01-01' end,
    timestamptz '2026-01-01',
    timestamptz '2026-01-01'
from generate_series(0, {classes} - 1) as number
cross join generate_series(1, {class_size}) as place
"""


@dataclass(frozen=True)
class Clinic:
    """Patients of an organization, each with a contact, and their appointments.

    Attributes:
        classes: how many of the appointments are classes of `CLASS_SIZE`.
        days_ago, days: the first day of the appointments before `as_of`, and the number of days.
        first: added to all ids, so that an organization can have several of these.
    """

    patients: int
    appointments: int
    classes: int = 0
    organization_id: str = ORGANIZATION
    as_of: datetime = AS_OF
    days_ago: int = 1065
    days: int = 1095
    first: int = 0

    def statements(self) -> list[str]:
        """Return the statements that store the clinic."""
        return CLINIC.format(**vars(self), class_size=CLASS_SIZE).split(";")


def replace_mapping(database: Database, organization_id: str = ORGANIZATION) -> None:
    """Write `contact_mapping` as the asset and its IO manager do."""
    derivation = Derivation(tables.CONTACT_MAPPING, sql("transforms/contact_mapping"), (tables.PATIENTS,))
    with database.organization(organization_id) as connection:
        derivations.write(connection, derivation, force=True)


def replace_active_patients(database: Database, organization_id: str = ORGANIZATION, as_of: datetime = AS_OF) -> None:
    """Write `active_patients` as the asset and its IO manager do."""
    parameters = {"as_of": as_of, "activity_window": ACTIVITY_WINDOW, "count_no_shows": True}
    with database.organization(organization_id) as connection:
        replace_by_query(connection, tables.ACTIVE_PATIENTS, sql("transforms/active_patients"), parameters)


BY_HAND_TABLE = """
create schema by_hand;
create table by_hand.active_patients (like public.active_patients including all)
"""

# Relies on this clinic: one organization, only individual appointments, no merged patients, times of full seconds, a
# current mapping.
BY_HAND = """
insert into by_hand.active_patients
    (organization_id, contact_id, recent_appointment_count, upcoming_appointment_count, total_appointment_count,
    last_appointment_date, recent_appointments, upcoming_appointments, search_date_from, search_date_to,
    created_at, updated_at)
select
    'clinic',
    mapping.contact_id,
    count(*) filter (where appointment.starts_at between {begin} and {as_of}),
    count(*) filter (where appointment.starts_at > {as_of}),
    count(*),
    max(appointment.starts_at) filter (where appointment.starts_at <= {as_of}) at time zone 'UTC',
    jsonb_agg({details} order by appointment.starts_at desc, appointment.id)
        filter (where appointment.starts_at between {begin} and {as_of}),
    coalesce(
        jsonb_agg({details} order by appointment.starts_at, appointment.id)
            filter (where appointment.starts_at > {as_of}),
        '[]'
    ),
    {begin} at time zone 'UTC',
    {as_of} at time zone 'UTC',
    now(),
    now()
from cliniko.appointments as appointment
inner join cliniko.patients as patient on patient.id = appointment.patient_id
inner join cliniko.contact_mapping as mapping on mapping.patient_id = patient.id
left join cliniko.appointment_types as appointment_type on appointment_type.id = appointment.appointment_type_id
left join cliniko.practitioners as practitioner on practitioner.id = appointment.practitioner_id
where appointment.cancelled_at is null
    and appointment.archived_at is null
    and appointment.deleted_at is null
    and patient.archived_at is null
    and patient.deleted_at is null
    and mapping.contact_id is not null
group by mapping.contact_id
having count(*) filter (where appointment.starts_at between {begin} and {as_of}) >= 1
"""

_DETAILS = """jsonb_build_object(
            'id', appointment.id,
            'kind', 'individual',
            'starts_at', to_char(appointment.starts_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
            'ends_at', to_char(appointment.ends_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
            'appointment_type', appointment_type.name,
            'practitioner', practitioner.name,
            'did_not_arrive', appointment.did_not_arrive
        )"""


def by_hand() -> str:
    """Return the hand-written statement."""
    begin, end = (f"timestamptz '{each.isoformat()}'" for each in (AS_OF - ACTIVITY_WINDOW, AS_OF))
    return BY_HAND.format(begin=begin, as_of=end, details=_DETAILS)


@dataclass(frozen=True)
class Clientele:
    """Patients and contacts to be matched, with columns that follow from `n`, which counts from 0 to `size` - 1.

    Attributes:
        patient: expressions for first_name, last_name, email, merged_into_id and archived_at.
        contact: expressions for cliniko_patient_id, name and email.
        matched: the expected share of matched patients, where it follows from the data.
    """

    name: str
    patient: str
    contact: str
    matched: float | None = None

    def statements(self, size: int) -> list[str]:
        """Return the statements that make so many patients and as many contacts."""
        names = {"size": size, "id": _ID}
        return [
            f"""
            insert into cliniko.patients
                (organization_id, id, created_at, updated_at, first_name, last_name, email, merged_into_id, archived_at)
            select 'clinic', {_ID}, now(), now(), {self.patient.format(**names)}
            from generate_series(0, {size} - 1) as n
            """,  # noqa: S608 (expressions of this module)
            f"""
            insert into public.contacts (id, organization_id, cliniko_patient_id, name, email)
            select md5('contact ' || n)::uuid, 'clinic', {self.contact.format(**names)}
            from generate_series(0, {size} - 1) as n
            order by md5(n::text)
            """,  # noqa: S608
        ]


_ID = "(1300000000000000000 + n)::text"
_FIRST = "case when {n} % 10 = 0 then 'Zoë-Renée ' else 'Alexandra ' end || {n} % 1000"
_LAST = "case when {n} % 10 = 0 then 'Müller-Ångström ' else 'Featherstone ' end || {n} / 1000"
_OWN = f"{_FIRST}, {_LAST}".format(n="n")
_NAME = f"{_FIRST} || ' ' || {_LAST}".format(n="n")
_NAME_OF_FOUR_BEFORE = f"{_FIRST} || ' ' || {_LAST}".format(n="(n - 4)")

# Of twelve contacts four name their patient, four have the patient's e-mail address in another spelling (in every
# fourth dozen a family's address), three have the name alone. The twelfth is by turns a duplicate and a stranger. One
# patient in a hundred is merged into another, one in fifty archived.
MIXED = Clientele(
    "a clinic's",
    f"""{_OWN},
    case
        when n % 12 between 4 and 7 and n / 12 % 4 = 0 then 'family.' || n / 12 || '@example.com'
        when n % 8 > 0 or n % 12 between 4 and 7 then 'person.' || n || '@example.com'
    end,
    case when n % 100 = 99 then (1299999999999999999 + n)::text end,
    case when n % 50 = 13 then now() end""",
    f"""
    case when n % 12 < 4 then {{id}} end,
    case
        when n % 12 < 11 then {_NAME}
        when n / 12 % 2 = 0 then {_NAME_OF_FOUR_BEFORE}
        else 'Nobody ' || n
    end,
    case
        when n % 12 < 4 then 'other.' || n || '@example.com'
        when n % 12 < 8 and n / 12 % 4 = 0 then ' Family.' || n / 12 || '@Example.com'
        when n % 12 < 8 then 'Person.' || n || '@Example.com '
        when n % 12 = 11 and n / 12 % 2 = 0 then 'person.' || n - 4 || '@example.com'
    end""",
)

HOSTILE = (
    Clientele("one e-mail for all", f"{_OWN}, 'info@example.com', null, null", f"null, {_NAME}, 'info@example.com'", 1),
    Clientele(
        "one e-mail for all, names that do not agree",
        f"{_OWN}, 'info@example.com', null, null",
        "null, 'Nobody ' || n, 'info@example.com'",
        0,
    ),
    Clientele("one name for all", "'Alex', 'Smith', null, null, null", "null, 'Alex Smith', null", 0),
    Clientele(
        "one e-mail and one name for all",
        "'Alex', 'Smith', 'info@example.com', null, null",
        "null, 'Alex Smith', 'info@example.com'",
        0,
    ),
    Clientele(
        "one name in each of many families",
        "'Alex', 'Smith', 'family.' || n / 2 || '@example.com', null, null",
        "null, 'Alex Smith', 'family.' || n / 2 || '@example.com'",
        0,
    ),
    Clientele(
        "all contacts name one patient",
        f"{_OWN}, null, null, null",
        f"'1300000000000000000', {_NAME}, null",
    ),
    Clientele(
        "one chain of merges",
        f"{_OWN}, null, case when n < {{size}} - 1 then (1300000000000000001 + n)::text end, null",
        f"{{id}}, {_NAME}, null",
    ),
    Clientele(
        "one loop of merges",
        f"{_OWN}, null, (1300000000000000000 + (n + 1) % {{size}})::text, null",
        f"{{id}}, {_NAME}, null",
    ),
    Clientele(
        "chains of a hundred merges",
        f"{_OWN}, null, case when n % 100 < 99 then (1300000000000000001 + n)::text end, null",
        f"case when n % 2 = 0 then {{id}} end, {_NAME}, 'info@example.com'",
    ),
)
