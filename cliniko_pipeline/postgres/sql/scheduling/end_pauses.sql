-- Ends the pauses of organizations with new credentials. These organizations are synced at the next tick.
update cliniko.scheduling as scheduling
set
    paused_at = null,
    pause_reason = null,
    paused_credentials = null,
    refused_at = null,
    refused_run_id = null,
    refused_credentials = null,
    retry_at = now()
from public.api_credentials as credentials
where credentials.organization_id::text = scheduling.organization_id
    and credentials.service_name = :service
    and (scheduling.paused_at is not null or scheduling.refused_at is not null)
    and coalesce(scheduling.paused_credentials, scheduling.refused_credentials)
    is distinct from md5(credentials.credentials_encrypted::text)
