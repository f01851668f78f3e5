-- The organization's ended syncs that started before :before, the oldest first. The latest sync of each status and set
-- of assets is left out, because `status` and `explain` show it.
select run.run_id
from cliniko.sync_runs as run
where run.started_at < :before
    and run.status <> 'running'
    and exists (
        select from cliniko.sync_runs as later
        where later.planned = run.planned
            and later.status = run.status
            and (later.started_at, later.run_id) > (run.started_at, run.run_id)
    )
order by run.started_at
limit :limit
