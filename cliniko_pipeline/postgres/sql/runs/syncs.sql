-- The organization's syncs of all assets, the latest first.
select
    run_id,
    status,
    is_full,
    started_at,
    finished_at,
    requests,
    seconds_waited,
    error,
    assets,
    case when status = 'running' then progress end as progress
from cliniko.sync_runs
where planned @> cast(:sync_assets as text[])
    and (cast(:run_id as text) is null or run_id = :run_id)
    and (
        cast(:before_at as timestamptz) is null
        or (started_at, run_id) < (cast(:before_at as timestamptz), cast(:before_id as text))
    )
order by started_at desc, run_id desc
limit :limit
