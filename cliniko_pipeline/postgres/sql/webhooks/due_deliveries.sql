-- The first due delivery of each organization comes first, so that no organization's backlog delays the others.
select
    delivery.organization_id,
    delivery.run_id,
    delivery.body,
    delivery.attempts,
    target.set_at,
    target.encrypted
from cliniko.webhook_deliveries as delivery
inner join cliniko.webhook_targets as target on target.organization_id = delivery.organization_id
where delivery.send_at <= now() and target.disabled_at is null
order by
    row_number() over (partition by delivery.organization_id order by delivery.send_at, delivery.position),
    delivery.send_at,
    delivery.position
limit :batch_size
