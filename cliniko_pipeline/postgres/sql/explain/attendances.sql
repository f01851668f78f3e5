-- All attendances of a person, the latest first. An attendance is an individual appointment or one attendee of a group
-- appointment. The column `counts` tells whether active_patients.sql counts the attendance.
--
-- :patient_ids         all patient ids of the person
-- :as_of, :activity_window, :count_no_shows   as in active_patients.sql
with
individual as (
    select
        appointment.kind,
        appointment.id,
        cast(null as text) as attendee_id,
        appointment.patient_id,
        appointment.starts_at,
        appointment.appointment_type_id,
        appointment.practitioner_id,
        appointment.cancelled_at,
        appointment.archived_at,
        appointment.deleted_at,
        appointment.vanished_at,
        cast(null as timestamptz) as booking_archived_at,
        cast(null as timestamptz) as booking_deleted_at,
        cast(null as timestamptz) as booking_vanished_at,
        true as is_booking_known,
        appointment.did_not_arrive as is_no_show,
        appointment.synced_at
    from cliniko.appointments as appointment
    where appointment.kind = 'individual' and appointment.patient_id = any(:patient_ids)
),

in_group as (
    select
        'group' as kind,
        attendee.booking_id as id,
        attendee.id as attendee_id,
        attendee.patient_id,
        booking.starts_at,
        booking.appointment_type_id,
        booking.practitioner_id,
        attendee.cancelled_at,
        attendee.archived_at,
        attendee.deleted_at,
        attendee.vanished_at,
        booking.archived_at as booking_archived_at,
        booking.deleted_at as booking_deleted_at,
        booking.vanished_at as booking_vanished_at,
        booking.id is not null as is_booking_known,
        coalesce(attendee.arrived is false and booking.starts_at <= :as_of, false) as is_no_show,
        greatest(attendee.synced_at, booking.synced_at) as synced_at
    from cliniko.attendees as attendee
    left join cliniko.appointments as booking on booking.kind = 'group' and booking.id = attendee.booking_id
    where attendee.patient_id = any(:patient_ids)
        -- Cliniko lists the attendees of individual appointments, too.
        and (
            booking.id is not null
            or not exists (
                select from cliniko.appointments as other
                where other.kind = 'individual' and other.id = attendee.booking_id
            )
        )
),

attended as (
    select
        each.*,
        each.is_booking_known
            and num_nulls(
                each.cancelled_at,
                each.archived_at,
                each.deleted_at,
                each.booking_archived_at,
                each.booking_deleted_at
            ) = 5 as stands
    from (select * from individual union all select * from in_group) as each
),

-- A person is counted once per group appointment, by one attendee. Attendees who arrived are preferred.
ranked as (
    select
        attended.*,
        first_value(attended.attendee_id) over same_group as first_attendee_id,
        :count_no_shows or not first_value(attended.is_no_show) over same_group as is_group_counted
    from attended
    window same_group as (
        partition by attended.kind, attended.id, attended.stands
        order by attended.is_no_show, length(attended.attendee_id), attended.attendee_id
    )
)

select
    ranked.kind,
    ranked.id,
    ranked.attendee_id,
    ranked.patient_id,
    ranked.starts_at,
    appointment_type.name as appointment_type,
    practitioner.name as practitioner,
    case
        when ranked.starts_at is null then 'unknown'
        when ranked.starts_at > :as_of then 'upcoming'
        when ranked.starts_at between cast(:as_of as timestamptz) - :activity_window and :as_of then 'recent'
        else 'earlier'
    end as "window",
    ranked.stands
        and (ranked.kind = 'individual' or ranked.attendee_id = ranked.first_attendee_id)
        and (:count_no_shows or not ranked.is_no_show) as counts,
    ranked.is_no_show,
    ranked.is_booking_known,
    ranked.cancelled_at,
    ranked.archived_at,
    ranked.deleted_at,
    ranked.vanished_at,
    ranked.booking_archived_at,
    ranked.booking_deleted_at,
    ranked.booking_vanished_at,
    case
        when ranked.stands and ranked.is_group_counted and ranked.attendee_id <> ranked.first_attendee_id
            then ranked.first_attendee_id
    end as counted_attendee_id,
    ranked.synced_at
from ranked
left join cliniko.appointment_types as appointment_type on appointment_type.id = ranked.appointment_type_id
left join cliniko.practitioners as practitioner on practitioner.id = ranked.practitioner_id
order by ranked.starts_at desc nulls last, length(ranked.id), ranked.id, ranked.kind desc,
    length(ranked.attendee_id), ranked.attendee_id
