-- If another target has replaced the failed target, set_at differs, and nothing is disabled.
with
disabled as (
    update cliniko.webhook_targets
    set disabled_at = now(), disabled_reason = :reason
    where organization_id = :organization_id and set_at = :set_at
    returning organization_id
)

update cliniko.webhook_deliveries
set send_at = null, ended_at = now(), outcome = coalesce(outcome, :reason)
where organization_id in (select disabled.organization_id from disabled) and send_at is not null
