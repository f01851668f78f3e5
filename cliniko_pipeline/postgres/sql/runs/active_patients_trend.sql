-- The number of active patients after the last sync of each day. Days of deleted syncs are in daily_active_patients.
select distinct on (day)
    day,
    active_patients
from (
    select
        day,
        active_patients,
        started_at,
        finished_at
    from cliniko.daily_active_patients
    union all
    select
        (finished_at at time zone 'UTC')::date,
        (assets -> 'active_patients' ->> 'rows')::bigint,
        started_at,
        finished_at
    from cliniko.sync_runs
    where status = 'succeeded' and assets -> 'active_patients' ? 'rows'
) as numbers
where started_at >= now() - make_interval(days => :days)
order by day, finished_at desc
