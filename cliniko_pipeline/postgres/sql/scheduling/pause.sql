-- The first reason and its time are kept, because later failures of the run are consequences.
insert into cliniko.scheduling as scheduling (
    organization_id, paused_at, pause_reason, paused_credentials, failure_reason, failed_run_id, failure_is_permanent
)
select
    credentials.organization_id::text,
    now(),
    :reason,
    :credentials,
    :reason,
    :run_id,
    true
from public.api_credentials as credentials
where credentials.organization_id::text = :organization_id
    and credentials.service_name = :service
    -- Credentials that were stored after the run began have not failed.
    and md5(credentials.credentials_encrypted::text) = :credentials
on conflict (organization_id) do update
set
    paused_at = excluded.paused_at,
    pause_reason = excluded.pause_reason,
    paused_credentials = excluded.paused_credentials,
    failure_reason = excluded.failure_reason,
    failed_run_id = excluded.failed_run_id,
    failure_is_permanent = true
where scheduling.paused_at is null
