-- The privileges that other databases' organization roles have in this database. In earlier versions, all databases
-- shared one role, and its privileges are included. is_own is whether the object belongs to the pipeline, which grants
-- privileges on it. The operator granted the privileges on other objects, so this database's role must get them, too.
with others as (
    select oid, rolname
    from pg_roles
    where rolname ~ '^cliniko_organization(_[0-9]+)?$' and rolname <> :role
),

granted as (
    select
        case relkind when 'S' then 'sequence' else 'table' end || ' ' || relation.oid::regclass as object,
        relation.relnamespace = to_regnamespace('cliniko')
        or exists (
            select from pg_policy
            where pg_policy.polrelid = relation.oid and pg_policy.polname = 'organization_boundary'
        ) as is_own,
        acl.grantee,
        acl.privilege_type
    from pg_class as relation
    cross join aclexplode(relation.relacl) as acl
    union all
    select 'schema ' || oid::regnamespace, nspname = 'cliniko', acl.grantee, acl.privilege_type
    from pg_namespace
    cross join aclexplode(nspacl) as acl
    union all
    select
        'routine ' || oid::regprocedure, pronamespace = to_regnamespace('cliniko'), acl.grantee, acl.privilege_type
    from pg_proc
    cross join aclexplode(proacl) as acl
    union all
    select 'database ' || quote_ident(datname), true, acl.grantee, acl.privilege_type
    from pg_database
    cross join aclexplode(datacl) as acl
    where datname = current_database()
)

select
    others.rolname as role,
    granted.object,
    granted.is_own,
    string_agg(distinct granted.privilege_type, ', ') as privileges
from granted
inner join others on others.oid = granted.grantee
group by 1, 2, 3
order by 1, 2
