-- What no successful whole sync knows of: none began to read after it was received.
select event.organization_id, max(event.received_at) as received_at, count(*) as events
from cliniko.webhook_events as event
left join cliniko.scheduling as scheduling on scheduling.organization_id = event.organization_id
where scheduling.read_began_at is null or event.received_at >= scheduling.read_began_at
group by event.organization_id
order by event.organization_id
