-- The tables in :names, and the partitions in :parts, without complete row-level security or without privileges of the
-- organization role. The role accesses partitions through the whole table, so it needs no privilege on them.
select pg_class.oid::regclass::text as name
from pg_class
left join pg_roles as role on role.rolname = :role
where pg_class.oid = any(select to_regclass(named) from unnest(cast(:names as text[]) || cast(:parts as text[])) as named)
    and not coalesce(
        pg_class.relrowsecurity
        and pg_class.relforcerowsecurity
        and exists (
            select from pg_policy
            where pg_policy.polrelid = pg_class.oid and pg_policy.polname = 'organization_isolation'
        )
        and exists (
            select from pg_policy
            where pg_policy.polrelid = pg_class.oid
                and pg_policy.polname = 'organization_boundary'
                and not pg_policy.polpermissive
                and pg_policy.polroles = array[role.oid]
        )
        and (
            pg_class.oid <> all(select to_regclass(named) from unnest(cast(:names as text[])) as named)
            or has_schema_privilege(role.oid, pg_class.relnamespace, 'usage')
            and (
                select bool_and(has_table_privilege(role.oid, pg_class.oid, privilege))
                from unnest(array['select', 'insert', 'update', 'delete']) as privilege
            )
        ),
        false
    )
order by name
