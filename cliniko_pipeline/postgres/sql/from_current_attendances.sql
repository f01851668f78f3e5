-- The attendances of the people that can be in the answer, as they were computed last; what they come to follows.
with
person as materialized (
    select distinct person_id as id, contact_id from cliniko.current_attendances
),

current_attendance as (
    select person_id, kind, id, starts_at, ends_at, appointment_type_id, practitioner_id, did_not_arrive
    from cliniko.current_attendances
    where kind <> 'earlier'
),

earlier as (
    select person_id, attendances from cliniko.current_attendances where kind = 'earlier'
),

