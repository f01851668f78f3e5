update cliniko.scheduling as scheduling
set
    paused_credentials = case when scheduling.paused_at is not null then md5(credentials.credentials_encrypted::text) end,
    refused_credentials = case when scheduling.refused_at is not null then md5(credentials.credentials_encrypted::text) end
from public.api_credentials as credentials
where scheduling.organization_id = :organization_id
    and credentials.organization_id::text = :organization_id
    and credentials.service_name = :service
    and (scheduling.paused_at is not null or scheduling.refused_at is not null)
