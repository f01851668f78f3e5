-- All patients that are the same person as :patient_id, including the person's own record.
with
identity as materialized (
    select patient_id, person_id, in_loop from cliniko.persons()
)

select
    patient.id,
    identity.person_id,
    identity.in_loop,
    patient.merged_into_id,
    patient.merged_at,
    patient.archived_at,
    patient.deleted_at,
    patient.vanished_at,
    patient.synced_at
from identity as asked
inner join identity on identity.person_id = asked.person_id
inner join cliniko.patients as patient on patient.id = identity.patient_id
where asked.patient_id = :patient_id
order by length(patient.id), patient.id
