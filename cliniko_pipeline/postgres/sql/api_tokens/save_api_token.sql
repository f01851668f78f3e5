insert into cliniko.api_tokens (id, name, digest, scopes, organizations, requests_per_minute, expires_at)
values (:id, :name, :digest, :scopes, :organizations, :requests_per_minute, :expires_at)
