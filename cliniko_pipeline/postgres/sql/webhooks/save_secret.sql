insert into cliniko.webhook_secrets (id, organization_id, encrypted) values (:id, :organization_id, :encrypted)
