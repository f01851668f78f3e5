-- The condition on the target finds nothing if the target was removed, replaced or disabled after it was read.
insert into cliniko.webhook_deliveries (organization_id, run_id, body)
select target.organization_id, :run_id, :body
from cliniko.webhook_targets as target
where target.organization_id = :organization_id and target.set_at = :set_at and target.disabled_at is null
on conflict (organization_id, run_id) do nothing
