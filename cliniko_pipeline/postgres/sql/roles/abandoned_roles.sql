-- Of the named organization roles, those whose database is gone, and whether anything of the server still needs them.
select
    role.rolname as name,
    exists (
        select from pg_shdepend where refclassid = 'pg_authid'::regclass and refobjid = role.oid
    ) as is_used
from pg_roles as role
where role.rolname = any(cast(:names as text[]))
    and not exists (select from pg_database where role.rolname = 'cliniko_organization_' || pg_database.oid)
order by name
