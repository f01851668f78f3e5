-- The events that no successful sync has followed: none began to read after they were received. If the clock was set
-- back, a sync in its future follows no event, and an event in its future is not the latest.
select
    event.organization_id,
    coalesce(
        max(event.received_at) filter (where event.received_at <= now()), max(event.received_at)
    ) as received_at,
    count(*) as events
from cliniko.webhook_events as event
left join cliniko.scheduling as scheduling on scheduling.organization_id = event.organization_id
where scheduling.read_began_at is null
    or event.received_at >= scheduling.read_began_at
    or scheduling.read_began_at > now()
group by event.organization_id
order by event.organization_id
