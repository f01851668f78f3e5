-- Of organizations whose credentials are others than those that did not work; they are synced at the next tick.
update cliniko.scheduling as scheduling
set paused_at = null, pause_reason = null, paused_credentials = null, retry_at = now()
from public.api_credentials as credentials
where credentials.organization_id::text = scheduling.organization_id
    and credentials.service_name = :service
    and scheduling.paused_at is not null
    and scheduling.paused_credentials is distinct from md5(credentials.credentials_encrypted::text)
