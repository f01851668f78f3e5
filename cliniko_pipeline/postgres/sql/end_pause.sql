-- It is synced at the next tick.
update cliniko.scheduling
set paused_at = null, pause_reason = null, paused_credentials = null, retry_at = now()
where paused_at is not null and (organization_id = :organization_id or cast(:organization_id as text) is null)
