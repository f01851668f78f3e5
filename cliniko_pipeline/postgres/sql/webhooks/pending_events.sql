-- The events that were received after the last successful sync began to read. The clock may have been set back. A sync
-- that began in the future is then ignored, and an event in the future is not taken as the latest event.
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
