insert into public.api_credentials as stored (
    organization_id, service_name, credentials_encrypted, is_active, last_validated_at, created_by
)
values (:organization_id, :service, :encrypted, true, case when :validated then now() end, :created_by)
on conflict (organization_id, service_name) do update
set
    credentials_encrypted = excluded.credentials_encrypted,
    is_active = true,
    last_validated_at = excluded.last_validated_at,
    updated_at = now()
