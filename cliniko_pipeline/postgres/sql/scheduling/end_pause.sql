-- A paused organization is synced at the next tick. The freshness check measures the data's age from now on.
update cliniko.scheduling
set
    retry_at = case when paused_at is not null then now() else retry_at end,
    known_since = now(),
    paused_at = null,
    pause_reason = null,
    paused_credentials = null,
    refused_at = null,
    refused_run_id = null,
    refused_credentials = null
where organization_id = :organization_id
    or (cast(:organization_id as text) is null and paused_at is not null)
