-- The next stored check results in Dagster's tables, in the order of ids.
select
    id,
    coalesce(evaluation_event_timestamp, create_timestamp) as at,
    run_id,
    asset_key,
    check_name,
    partition,
    execution_status = 'PLANNED' as is_planned
from asset_check_executions
where id > :after
order by id
limit :limit
