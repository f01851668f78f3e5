"""Hand-written SQL for the mapping and the active patients, for one organization without merged patients."""

from datetime import datetime

import psycopg

from benchmarks.fixtures.by_hand import SETTINGS_OF_OURS, by_hand
from benchmarks.others.floor_tables import SCHEMA
from benchmarks.others.tasks import Task

_INTO = (
    f"insert into {SCHEMA}.contact_mapping (organization_id, patient_id, contact_id, status, method)"
    " select 'clinic', patient.id, contact.id, 'matched',"
)

_NAMED = f"""
{_INTO} 'cliniko_patient_id'
from {SCHEMA}.patients as patient
inner join public.contacts as contact on contact.cliniko_patient_id = patient.id
"""

# A key matches a patient and a contact only if no other patient and no other contact has it.
_SAME_KEY = """
{into} '{method}'
from (
    select lower(trim({key_of_patient})) as key, min(id) as id
    from {schema}.patients as patient
    where archived_at is null
        and deleted_at is null
        and not exists (select from {schema}.contact_mapping as mapping where mapping.patient_id = patient.id)
    group by 1
    having count(*) = 1
) as patient
inner join (
    select lower(trim({key_of_contact})) as key, (array_agg(id))[1] as id
    from public.contacts as contact
    where not exists (select from {schema}.contact_mapping as mapping where mapping.contact_id = contact.id)
    group by 1
    having count(*) = 1
) as contact on contact.key = patient.key and patient.key <> ''
"""

_REST = f"""
insert into {SCHEMA}.contact_mapping (organization_id, patient_id, status)
select 'clinic', id, 'unmatched'
from {SCHEMA}.patients
on conflict (organization_id, patient_id) do nothing
"""  # noqa: S608 (our names)


def transform(task: Task) -> None:
    """Write the mapping and the active patients."""
    with psycopg.connect(task.database_url) as connection:
        for statement in (
            # The tables have no statistics, so nested loops would take minutes.
            *SETTINGS_OF_OURS,
            _NAMED,
            _same_key("email", "email", "email"),
            _same_key("name", "concat_ws(' ', first_name, last_name)", "name"),
            _REST,
            by_hand(SCHEMA, SCHEMA, datetime.fromisoformat(task.as_of)),
        ):
            connection.execute(statement.encode())


def _same_key(method: str, of_patient: str, of_contact: str) -> str:
    return _SAME_KEY.format(
        into=_INTO, schema=SCHEMA, method=method, key_of_patient=of_patient, key_of_contact=of_contact
    )
