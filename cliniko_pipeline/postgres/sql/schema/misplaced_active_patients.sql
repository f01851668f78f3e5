select count(*)
from public.active_patients as row
where not exists (
    select
    from public.contacts as contact
    where contact.id = row.contact_id and contact.organization_id::text = row.organization_id::text
)
