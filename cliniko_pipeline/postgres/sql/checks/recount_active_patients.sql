-- Computes the active patients in another way than active_patients.sql, and compares them with the stored rows. This
-- query starts from the appointments. It uses the instant for which the stored rows were computed.
--
-- :as_of               the instant to use if there are no stored rows
-- :activity_window, :count_no_shows   as in active_patients.sql
with
-- Materialized, so that the instant is looked up once instead of per appointment.
judged as materialized (
    select coalesce(max(search_date_to) at time zone 'UTC', cast(:as_of as timestamptz)) as as_of
    from public.active_patients
),

recent as (
    select appointment.kind, appointment.id, appointment.patient_id, appointment.did_not_arrive
    from cliniko.appointments as appointment
    cross join judged
    where appointment.starts_at >= judged.as_of - :activity_window
        and appointment.starts_at <= judged.as_of
        and appointment.cancelled_at is null
        and appointment.archived_at is null
        and appointment.deleted_at is null
),

attending as (
    select recent.patient_id
    from recent
    where recent.kind = 'individual' and (:count_no_shows or not recent.did_not_arrive)
    union
    select attendee.patient_id
    from recent
    inner join cliniko.attendees as attendee on attendee.booking_id = recent.id
    where recent.kind = 'group'
        and attendee.cancelled_at is null
        and attendee.archived_at is null
        and attendee.deleted_at is null
        and (:count_no_shows or attendee.arrived is distinct from false)
),

active as (
    select distinct mapping.contact_id
    from attending
    inner join cliniko.persons() as person on person.patient_id = attending.patient_id
    inner join cliniko.patients as patient on patient.id = person.person_id
    inner join cliniko.contact_mapping as mapping on mapping.patient_id = person.person_id
    where patient.archived_at is null and patient.deleted_at is null and mapping.contact_id is not null
)

select
    (select count(*) from public.active_patients) as stored,
    -- A row is not missing if the application has deleted the contact since the sync.
    (
        select count(*)
        from active
        where active.contact_id in (select contact.id from cliniko.organization_contacts() as contact)
            and active.contact_id not in (select stored.contact_id from public.active_patients as stored)
    ) as missing,
    (
        select count(*)
        from public.active_patients as stored
        where stored.contact_id not in (select active.contact_id from active)
    ) as surplus,
    (select count(*) - count(distinct stored.contact_id) from public.active_patients as stored) as twice
