alter table {table} enable row level security;
alter table {table} force row level security;
-- The policies of active_patients, in the schema public, stay if the schema cliniko is dropped.
drop policy if exists organization_isolation on {table};
drop policy if exists organization_boundary on {table};
create policy organization_isolation on {table}
using ({condition})
with check ({condition});
-- The comment marks the pipeline's policy. The application may have a policy of the same name on its own tables.
comment on policy organization_isolation on {table} is 'cliniko_pipeline';
-- The application may have permissive policies on active_patients, which PostgreSQL joins with OR. This restrictive
-- policy keeps them from opening other organizations' rows to the pipeline.
create policy organization_boundary on {table} as restrictive to {role}
using ({condition})
with check ({condition});
