insert into cliniko.table_states (organization_id, name)
select current_setting('app.organization_id'), missing.name
from (
    select named.name
    from unnest(cast(:names as text[])) as named (name)
    where not exists (select from cliniko.table_states as state where state.name = named.name)
) as missing
on conflict do nothing
