-- Old events that need no sync. These are events before a successful sync, events of removed organizations, and events
-- with a later event of the same organization, because one sync serves both.
select event.ctid
from cliniko.webhook_events as event
left join cliniko.scheduling as scheduling on scheduling.organization_id = event.organization_id
where event.received_at < :before
    and (
        (event.received_at < scheduling.read_began_at and scheduling.read_began_at <= now())
        or exists (
            select from cliniko.webhook_events as later
            where later.organization_id = event.organization_id and later.received_at > event.received_at
        )
        or not exists (
            select from public.api_credentials as credentials
            where credentials.organization_id::text = event.organization_id and credentials.service_name = 'cliniko'
        )
    )
order by event.received_at
limit :limit
