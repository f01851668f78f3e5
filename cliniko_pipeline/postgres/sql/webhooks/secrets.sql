select id, organization_id, created_at, expires_at, encrypted, expires_at is null or expires_at > now() as is_valid
from cliniko.webhook_secrets
where organization_id = :organization_id
order by created_at, id
