-- The active people of the organization that have a contact: one row each.
--
-- :as_of               the instant judged by
-- :activity_window     how long before it an appointment is recent
-- :count_no_shows      whether an appointment nobody came to counts
with
identity as materialized (
    select patient_id, person_id from cliniko.persons()
),

-- Only people that can be in the answer.
person as materialized (
    select patient.id, mapping.contact_id
    from cliniko.contact_mapping as mapping
    inner join cliniko.patients as patient on patient.id = mapping.patient_id
    -- The mapping may be older than the contacts.
    inner join cliniko.organization_contacts() as contact on contact.id = mapping.contact_id
    where mapping.contact_id is not null and patient.archived_at is null and patient.deleted_at is null
),

patient as materialized (
    select identity.patient_id as id, person.id as person_id
    from identity
    inner join person on person.id = identity.person_id
),

individual as (
    select
        patient.person_id,
        appointment.kind,
        appointment.id,
        appointment.starts_at,
        appointment.ends_at,
        appointment.appointment_type_id,
        appointment.practitioner_id,
        appointment.did_not_arrive
    from cliniko.appointments as appointment
    inner join patient on patient.id = appointment.patient_id
    where appointment.kind = 'individual'
        and appointment.cancelled_at is null
        and appointment.archived_at is null
        and appointment.deleted_at is null
),

-- A person counts once per group appointment, however often re-added.
in_group as (
    select
        patient.person_id,
        appointment.kind,
        appointment.id,
        appointment.starts_at,
        appointment.ends_at,
        appointment.appointment_type_id,
        appointment.practitioner_id,
        -- Nobody can have failed to arrive at a class that has not been held.
        bool_and(attendee.arrived is false and appointment.starts_at <= :as_of) as did_not_arrive
    from cliniko.appointments as appointment
    inner join cliniko.attendees as attendee on attendee.booking_id = appointment.id
    inner join patient on patient.id = attendee.patient_id
    where appointment.kind = 'group'
        and appointment.archived_at is null
        and appointment.deleted_at is null
        and attendee.cancelled_at is null
        and attendee.archived_at is null
        and attendee.deleted_at is null
    group by
        patient.person_id,
        appointment.kind,
        appointment.id,
        appointment.starts_at,
        appointment.ends_at,
        appointment.appointment_type_id,
        appointment.practitioner_id
),

attendance as (
    select
        attended.*,
        attended.starts_at > :as_of as is_upcoming,
        attended.starts_at between cast(:as_of as timestamptz) - :activity_window and :as_of as is_recent
    from (select * from individual union all select * from in_group) as attended
    where :count_no_shows or not attended.did_not_arrive
),

described as (
    select
        attendance.person_id,
        attendance.starts_at,
        attendance.id,
        attendance.kind,
        attendance.is_upcoming,
        attendance.is_recent,
        case
            when attendance.is_upcoming or attendance.is_recent
                then jsonb_build_object(
                    'id', attendance.id,
                    'kind', attendance.kind,
                    'starts_at', cliniko.instant(attendance.starts_at),
                    'ends_at', cliniko.instant(attendance.ends_at),
                    'appointment_type', appointment_type.name,
                    'practitioner', practitioner.name,
                    'did_not_arrive', attendance.did_not_arrive
                )
        end as details
    from attendance
    left join cliniko.appointment_types as appointment_type on appointment_type.id = attendance.appointment_type_id
    left join cliniko.practitioners as practitioner on practitioner.id = attendance.practitioner_id
),

counted as (
    select
        person_id,
        count(*) filter (where is_recent) as recent,
        count(*) filter (where is_upcoming) as upcoming,
        count(*) as total,
        max(starts_at) filter (where not is_upcoming) as last_starts_at,
        jsonb_agg(details order by starts_at desc, length(id), id, kind desc) filter (where is_recent)
            as recent_appointments,
        jsonb_agg(details order by starts_at, length(id), id, kind desc) filter (where is_upcoming)
            as upcoming_appointments
    from described
    group by person_id
    having count(*) filter (where is_recent) >= 1
)

select
    person.contact_id,
    cast(counted.recent as integer) as recent_appointment_count,
    cast(counted.upcoming as integer) as upcoming_appointment_count,
    cast(counted.total as integer) as total_appointment_count,
    counted.last_starts_at at time zone 'UTC' as last_appointment_date,
    counted.recent_appointments,
    coalesce(counted.upcoming_appointments, '[]'::jsonb) as upcoming_appointments,
    (cast(:as_of as timestamptz) - :activity_window) at time zone 'UTC' as search_date_from,
    cast(:as_of as timestamptz) at time zone 'UTC' as search_date_to
from counted
inner join person on person.id = counted.person_id
