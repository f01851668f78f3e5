select
    credentials.organization_id as id,
    coalesce(organization.name, credentials.organization_id) as name,
    credentials.is_active,
    credentials.last_validated_at
from public.api_credentials as credentials
left join public.organizations as organization on organization.id = credentials.organization_id
where credentials.service_name = :service
order by credentials.organization_id
