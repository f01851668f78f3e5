-- Those of the runs that stored the latest materialization or observation of an asset's partition.
select distinct event.run_id
from event_logs as event
where event.run_id = any(cast(:run_ids as text[]))
    and event.dagster_event_type = any(cast(:types as text[]))
    and not case
        when event.partition is null then exists (
            select from event_logs as later
            where later.asset_key = event.asset_key
                and later.dagster_event_type = event.dagster_event_type
                and later.partition is null
                and later.id > event.id
        )
        else exists (
            select from event_logs as later
            where later.asset_key = event.asset_key
                and later.dagster_event_type = event.dagster_event_type
                and later.partition = event.partition
                and later.id > event.id
        )
    end
