-- The attendances that are kept, against a second reckoning from the appointments up; the instant is the one they were
-- computed for.
--
-- :activity_window     as in active_patients.sql
with
judged as materialized (
    select as_of - :activity_window as since from cliniko.table_states where name = 'cliniko.current_attendances'
),

booked as (
    select appointment.kind, appointment.id, appointment.patient_id, appointment.starts_at
    from cliniko.appointments as appointment
    cross join judged
    where appointment.starts_at >= judged.since
        and appointment.cancelled_at is null
        and appointment.archived_at is null
        and appointment.deleted_at is null
),

attending as (
    select booked.kind, booked.id, booked.patient_id, booked.starts_at from booked where booked.kind = 'individual'
    union all
    select booked.kind, booked.id, attendee.patient_id, booked.starts_at
    from booked
    inner join cliniko.attendees as attendee on attendee.booking_id = booked.id
    where booked.kind = 'group'
        and attendee.cancelled_at is null
        and attendee.archived_at is null
        and attendee.deleted_at is null
),

counting as (
    select distinct mapping.patient_id as person_id, mapping.contact_id, attending.kind, attending.id, attending.starts_at
    from attending
    inner join cliniko.persons() as person on person.patient_id = attending.patient_id
    inner join cliniko.patients as patient on patient.id = person.person_id
    inner join cliniko.contact_mapping as mapping on mapping.patient_id = person.person_id
    where patient.archived_at is null
        and patient.deleted_at is null
        and mapping.contact_id in (select contact.id from cliniko.organization_contacts() as contact)
)

select
    count(*) filter (where kept.id is null) as missing,
    count(*) filter (where counting.id is null) as surplus
from counting
full join (select * from cliniko.current_attendances where kind <> 'earlier') as kept
    on kept.person_id = counting.person_id
    and kept.contact_id = counting.contact_id
    and kept.kind = counting.kind
    and kept.id = counting.id
    and kept.starts_at = counting.starts_at
