-- The policies in this database, except the pipeline's, that are for an organization role of another database.
select distinct role.rolname as role, quote_ident(policy.polname) as policy, policy.polrelid::regclass::text as object
from pg_policy as policy
inner join pg_roles as role on role.oid = any(policy.polroles)
where role.rolname ~ '^cliniko_organization(_[0-9]+)?$'
    and role.rolname <> :role
    and policy.polname <> 'organization_boundary'
order by 1, 2, 3
