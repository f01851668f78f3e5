-- The first instant after :as_of at which an attendance is no longer upcoming, or is no longer recent. Until then, the
-- same records give the same active patients. Null if there is no such instant. Attendances that are not counted may make
-- the instant too early.
--
-- :as_of               the instant that the active patients were computed for
-- :activity_window     as in active_patients.sql
with
starts as (
    select appointment.starts_at
    from cliniko.appointments as appointment
    where appointment.starts_at >= cast(:as_of as timestamptz) - :activity_window
        and appointment.cancelled_at is null
        and appointment.archived_at is null
        and appointment.deleted_at is null
)

select least(
    min(starts_at) filter (where starts_at > :as_of),
    min(starts_at) + :activity_window
)
from starts
