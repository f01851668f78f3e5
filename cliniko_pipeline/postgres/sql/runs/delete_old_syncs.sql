-- Deletes old syncs. The number of active patients after the last sync of each day is kept for the trend.
with
old as (
    {old}
),

kept as (
    insert into cliniko.daily_active_patients as daily (
        organization_id, day, active_patients, started_at, finished_at
    )
    select distinct on (day)
        organization_id,
        (finished_at at time zone 'UTC')::date as day,
        (assets -> 'active_patients' ->> 'rows')::bigint,
        started_at,
        finished_at
    from cliniko.sync_runs
    where run_id in (select run_id from old)
        and status = 'succeeded'
        and assets -> 'active_patients' ? 'rows'
    order by day, finished_at desc
    on conflict (organization_id, day) do update
    set
        active_patients = excluded.active_patients,
        started_at = excluded.started_at,
        finished_at = excluded.finished_at
    where excluded.finished_at > daily.finished_at
)

delete from cliniko.sync_runs where run_id in (select run_id from old)
