alter table {table} enable row level security;
alter table {table} force row level security;
-- There are some where the schema was dropped and active_patients, in the application's, was kept.
drop policy if exists organization_isolation on {table};
drop policy if exists organization_boundary on {table};
-- The context is read once a statement (the sub-select), not once a row.
create policy organization_isolation on {table}
using (organization_id = (select nullif(current_setting('app.organization_id', true), '')))
with check (organization_id = (select nullif(current_setting('app.organization_id', true), '')));
-- PostgreSQL joins permissive policies with OR, and the application may have some of its own on active_patients: what
-- they open to others, they do not open to the pipeline.
create policy organization_boundary on {table} as restrictive to {role}
using (organization_id = (select nullif(current_setting('app.organization_id', true), '')))
with check (organization_id = (select nullif(current_setting('app.organization_id', true), '')));
grant usage on schema {schema} to {role};
grant select, insert, update, delete on {table} to {role};
