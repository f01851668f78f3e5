-- The organization roles in :names whose database does not exist, and whether objects of the server still use them.
select
    role.rolname as name,
    exists (
        select from pg_shdepend where refclassid = 'pg_authid'::regclass and refobjid = role.oid
    ) as is_used
from pg_roles as role
where role.rolname = any(cast(:names as text[]))
    and not exists (select from pg_database where role.rolname = 'cliniko_organization_' || pg_database.oid)
order by name
