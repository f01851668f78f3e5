select organization_id, credentials_encrypted
from public.api_credentials
where service_name = :service
order by organization_id
for update
