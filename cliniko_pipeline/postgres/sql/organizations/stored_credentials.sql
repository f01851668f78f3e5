select credentials_encrypted
from public.api_credentials
where organization_id = :organization_id and service_name = :service
