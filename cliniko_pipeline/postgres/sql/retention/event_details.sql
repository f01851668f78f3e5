-- The next events of one type in Dagster's tables, in the order of ids. An event is kept if its run has not ended. The
-- event that planned a materialization is also kept if no later event replaces it, because it shows a failed partition.
-- In the `order by`, the type lets PostgreSQL read the index in order even if the type is null.
select
    event.id,
    event.timestamp as at,
    event.run_id = any(cast(:unfinished as text[])) or not case
        when event.asset_key is null then true
        when event.partition is null then exists (
            select from event_logs as later
            where later.asset_key = event.asset_key
                and later.dagster_event_type = any(cast(:replacing as text[]))
                and later.partition is null
                and later.id > event.id
        )
        else exists (
            select from event_logs as later
            where later.asset_key = event.asset_key
                and later.dagster_event_type = any(cast(:replacing as text[]))
                and later.partition = event.partition
                and later.id > event.id
        )
    end as is_kept
from event_logs as event
where event.dagster_event_type {condition} and event.id > :after
order by event.dagster_event_type, event.id
limit :limit
