-- The number of active patients after the last sync of each day.
select distinct on (day)
    (finished_at at time zone 'UTC')::date as day,
    (assets -> 'active_patients' ->> 'rows')::bigint as active_patients
from cliniko.sync_runs
where status = 'succeeded'
    and assets -> 'active_patients' ? 'rows'
    and started_at >= now() - make_interval(days => :days)
order by day, finished_at desc
