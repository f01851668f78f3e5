insert into cliniko.crawled_ids (organization_id, resource, id)
select current_setting('app.organization_id'), :resource, seen.id
from unnest(cast(:ids as text [])) as seen (id)
on conflict do nothing
