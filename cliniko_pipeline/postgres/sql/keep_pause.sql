update cliniko.scheduling as scheduling
set paused_credentials = md5(credentials.credentials_encrypted::text)
from public.api_credentials as credentials
where scheduling.organization_id = :organization_id
    and credentials.organization_id::text = :organization_id
    and credentials.service_name = :service
    and scheduling.paused_at is not null
