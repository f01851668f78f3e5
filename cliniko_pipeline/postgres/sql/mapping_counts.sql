select
    count(*) filter (where status = 'matched') as matched,
    count(*) filter (where status = 'ambiguous') as ambiguous,
    count(*) filter (where status = 'unmatched') as unmatched,
    count(contact_id) - count(distinct contact_id) as contacts_used_twice
from cliniko.contact_mapping
