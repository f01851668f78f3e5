-- The tables, of those named, that row-level security does not close as it should.
select pg_class.oid::regclass::text as name
from pg_class
where pg_class.oid = any(select to_regclass(named) from unnest(cast(:names as text[])) as named)
    and not (
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
        )
    )
order by name
