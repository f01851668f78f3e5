alter table {table} enable row level security;
alter table {table} force row level security;
-- There are some where the schema was dropped and active_patients, in the application's, was kept.
drop policy if exists organization_isolation on {table};
drop policy if exists organization_boundary on {table};
create policy organization_isolation on {table}
using ({condition})
with check ({condition});
-- The name alone says nothing: the application may have a policy of that name on a table of its own.
comment on policy organization_isolation on {table} is 'cliniko_pipeline';
-- PostgreSQL joins permissive policies with OR, and the application may have some of its own on active_patients: what
-- they open to others, they do not open to the pipeline.
create policy organization_boundary on {table} as restrictive to {role}
using ({condition})
with check ({condition});
