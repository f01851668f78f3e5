-- A contact of an organization, preferably with Cliniko credentials. Only 1000 contacts are read, to save time.
select found.id, found.organization_id
from (
    select contact.id, contact.organization_id::text as organization_id
    from public.contacts as contact
    where contact.organization_id is not null and contact.organization_id::text <> ''
    limit 1000
) as found
order by
    exists (
        select from public.api_credentials as credentials
        where credentials.organization_id::text = found.organization_id
    ) desc
limit 1
