-- Ids are cast to text, because an application's ids may be uuids.
select
    credentials.organization_id::text as id,
    coalesce(organization.name, credentials.organization_id::text) as name,
    credentials.is_active,
    credentials.last_validated_at,
    scheduling.verified_at,
    scheduling.pause_reason,
    coalesce(
        (
            select array_agg(result.name || ': ' || result.remark order by result.asset, result.name)
            from cliniko.check_results as result
            where result.organization_id = credentials.organization_id::text and not result.holds
        ),
        '{}'
    ) as failed_checks
from public.api_credentials as credentials
left join public.organizations as organization on organization.id::text = credentials.organization_id::text
left join cliniko.scheduling as scheduling on scheduling.organization_id = credentials.organization_id::text
where credentials.service_name = :service
    and (cast(:id as text) is null or credentials.organization_id::text = :id)
order by id
