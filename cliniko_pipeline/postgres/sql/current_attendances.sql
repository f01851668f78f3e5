-- As time goes on nothing earlier becomes recent again, so this serves for every later instant.
kept as (
    select
        person_id, kind, id, starts_at, ends_at, appointment_type_id, practitioner_id, did_not_arrive, 1 as attendances
    from current_attendance
    union all
    select person_id, 'earlier', '', null, null, null, null, false, attendances
    from earlier
    -- Of whom there is nothing else, nothing can become recent.
    where person_id in (select current_attendance.person_id from current_attendance)
)

select
    kept.person_id,
    kept.kind,
    kept.id,
    person.contact_id,
    kept.starts_at,
    kept.ends_at,
    kept.appointment_type_id,
    kept.practitioner_id,
    kept.did_not_arrive,
    kept.attendances
from kept
inner join person on person.id = kept.person_id
