-- The syncs of all assets that started at :since or later, the oldest first. Running syncs are included.
select
    run_id,
    status,
    started_at,
    finished_at,
    error,
    assets,
    started_at < now() - cast(:longest_run as interval) as is_given_up
from cliniko.sync_runs
where started_at >= :since
    and planned @> cast(:sync_assets as text[])
    and (finished_at is null or finished_at >= :set_at)
order by started_at, run_id
limit :batch_size
