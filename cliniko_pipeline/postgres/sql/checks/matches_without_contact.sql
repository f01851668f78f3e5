-- The number of stored matches, and the number of those whose contact no longer exists.
with
contact as materialized (
    select id from cliniko.organization_contacts()
)

select
    count(*) as matched,
    count(*) filter (where contact.id is null) as lost,
    count(*) > 0 and not exists (select from contact) as has_lost_all_contacts
from cliniko.contact_mapping as mapping
left join contact on contact.id = mapping.contact_id
where mapping.contact_id is not null
