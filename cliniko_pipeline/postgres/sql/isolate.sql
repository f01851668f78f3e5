alter table {table} enable row level security;
alter table {table} force row level security;
-- There is one where the schema was dropped and active_patients, in the application's, was kept.
drop policy if exists organization_isolation on {table};
-- The context is read once a statement (the sub-select), not once a row.
create policy organization_isolation on {table}
using (organization_id = (select nullif(current_setting('app.organization_id', true), '')))
with check (organization_id = (select nullif(current_setting('app.organization_id', true), '')));
grant usage on schema {schema} to cliniko_organization;
grant select, insert, update, delete on {table} to cliniko_organization;
