-- The organization's active people with a contact, one row each.
--
-- :as_of               the instant that separates recent from upcoming appointments
-- :activity_window     the age at :as_of up to which an appointment is recent
-- :count_no_shows      whether missed appointments are counted
with
identity as materialized (
    select patient_id, person_id from cliniko.persons()
),

-- The people that have a contact and are neither archived nor deleted.
person as materialized (
    select patient.id, mapping.contact_id
    from cliniko.contact_mapping as mapping
    inner join cliniko.patients as patient on patient.id = mapping.patient_id
    -- The contact may have been deleted after it was mapped.
    inner join cliniko.organization_contacts() as contact on contact.id = mapping.contact_id
    where mapping.contact_id is not null and patient.archived_at is null and patient.deleted_at is null
),

patient as materialized (
    select identity.patient_id as id, person.id as person_id
    from identity
    inner join person on person.id = identity.person_id
),

-- Not materialized, because two scans with different conditions are faster. The many earlier appointments are only
-- counted. The few current ones, which are recent or upcoming, are listed.
individual as not materialized (
    select
        patient_id,
        kind,
        id,
        starts_at,
        ends_at,
        appointment_type_id,
        practitioner_id,
        did_not_arrive,
        starts_at >= cast(:as_of as timestamptz) - :activity_window as is_current
    from cliniko.appointments
    where kind = 'individual'
        and cancelled_at is null
        and archived_at is null
        and deleted_at is null
),

-- One row per person and group appointment. Cliniko adds another attendee if a person is added again.
in_group as not materialized (
    select
        patient.person_id,
        appointment.kind,
        appointment.id,
        appointment.starts_at,
        appointment.ends_at,
        appointment.appointment_type_id,
        appointment.practitioner_id,
        bool_and(attendee.arrived is false) as did_not_arrive,
        appointment.starts_at >= cast(:as_of as timestamptz) - :activity_window as is_current
    from cliniko.appointments as appointment
    inner join cliniko.attendees as attendee on attendee.booking_id = appointment.id
    inner join patient on patient.id = attendee.patient_id
    where appointment.kind = 'group'
        and appointment.archived_at is null
        and appointment.deleted_at is null
        and attendee.cancelled_at is null
        and attendee.archived_at is null
        and attendee.deleted_at is null
    group by patient.person_id, appointment.organization_id, appointment.kind, appointment.id
),

-- Recent and upcoming attendances, missed ones included.
current_attendance as (
    select
        patient.person_id,
        individual.kind,
        individual.id,
        individual.starts_at,
        individual.ends_at,
        individual.appointment_type_id,
        individual.practitioner_id,
        individual.did_not_arrive
    from individual
    inner join patient on patient.id = individual.patient_id
    where individual.is_current
    union all
    select person_id, kind, id, starts_at, ends_at, appointment_type_id, practitioner_id, did_not_arrive
    from in_group
    where is_current
),

-- Individual appointments are counted per patient first, because joining each with its person is slower.
earlier_of_patient as (
    select patient_id, count(*) as attendances
    from individual
    where not is_current and (:count_no_shows or not did_not_arrive)
    group by patient_id
),

earlier_in_group as (
    select person_id, count(*) as attendances
    from in_group
    where not is_current and (:count_no_shows or not did_not_arrive)
    group by person_id
),

-- The number of earlier attendances per person.
earlier as (
    select person_id, cast(sum(attendances) as integer) as attendances
    from (
        select patient.person_id, earlier_of_patient.attendances
        from earlier_of_patient
        inner join patient on patient.id = earlier_of_patient.patient_id
        union all
        select person_id, attendances from earlier_in_group
    ) as counts
    group by person_id
),

-- Recent and upcoming attendances that are counted.
counted_attendance as (
    select
        judged.person_id,
        judged.kind,
        judged.id,
        judged.starts_at,
        judged.ends_at,
        judged.appointment_type_id,
        judged.practitioner_id,
        judged.did_not_arrive,
        judged.starts_at > :as_of as is_upcoming
    from (
        select
            person_id,
            kind,
            id,
            starts_at,
            ends_at,
            appointment_type_id,
            practitioner_id,
            -- An attendee's arrival is meaningless before the group appointment.
            did_not_arrive and (kind <> 'group' or starts_at <= :as_of) as did_not_arrive
        from current_attendance
    ) as judged
    where :count_no_shows or not judged.did_not_arrive
),

-- The active people, who have at least one recent attendance. Their last past attendance is therefore a recent one.
active_person as (
    select
        person_id,
        count(*) filter (where not is_upcoming) as recent,
        count(*) filter (where is_upcoming) as upcoming,
        count(*) as recent_and_upcoming,
        max(starts_at) filter (where not is_upcoming) as last_starts_at
    from counted_attendance
    group by person_id
    having count(*) filter (where not is_upcoming) >= 1
),

described as (
    select
        attendance.person_id,
        attendance.starts_at,
        attendance.id,
        attendance.kind,
        attendance.is_upcoming,
        jsonb_build_object(
            'id', attendance.id,
            'kind', attendance.kind,
            'starts_at', cliniko.instant(attendance.starts_at),
            'ends_at', cliniko.instant(attendance.ends_at),
            'appointment_type', appointment_type.name,
            'practitioner', practitioner.name,
            'did_not_arrive', attendance.did_not_arrive
        ) as details
    from counted_attendance as attendance
    left join cliniko.appointment_types as appointment_type on appointment_type.id = attendance.appointment_type_id
    left join cliniko.practitioners as practitioner on practitioner.id = attendance.practitioner_id
    where attendance.person_id in (select active_person.person_id from active_person)
),

listed as (
    select
        person_id,
        jsonb_agg(details order by starts_at desc, length(id), id, kind desc) filter (where not is_upcoming)
            as recent_appointments,
        jsonb_agg(details order by starts_at, length(id), id, kind desc) filter (where is_upcoming)
            as upcoming_appointments
    from described
    group by person_id
)

select
    person.contact_id,
    cast(active_person.recent as integer) as recent_appointment_count,
    cast(active_person.upcoming as integer) as upcoming_appointment_count,
    cast(active_person.recent_and_upcoming + coalesce(earlier.attendances, 0) as integer) as total_appointment_count,
    active_person.last_starts_at at time zone 'UTC' as last_appointment_date,
    listed.recent_appointments,
    coalesce(listed.upcoming_appointments, '[]'::jsonb) as upcoming_appointments,
    (cast(:as_of as timestamptz) - :activity_window) at time zone 'UTC' as search_date_from,
    cast(:as_of as timestamptz) at time zone 'UTC' as search_date_to
from active_person
inner join listed on listed.person_id = active_person.person_id
inner join person on person.id = active_person.person_id
left join earlier on earlier.person_id = active_person.person_id
