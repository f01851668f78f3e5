select
    id, name, digest, scopes, organizations, requests_per_minute, created_at, expires_at, revoked_at, last_used_at,
    now() as now
from cliniko.api_tokens
where id = :id
