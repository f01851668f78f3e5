-- The policies on the tables in :names that have the names of the pipeline's policies, but belong to the application.
-- The pipeline's policies are recognized by a comment. Policies of earlier versions have no comment, and are recognized
-- by the boundary for the organization role.
select format('%I', policy.polname) as name, policy.polrelid::regclass::text as table
from pg_policy as policy
where policy.polrelid = any(select to_regclass(named) from unnest(cast(:names as text[])) as named)
    and policy.polname in ('organization_isolation', 'organization_boundary')
    and not exists (
        select
        from pg_policy as own
        where own.polrelid = policy.polrelid
            and (
                own.polname = 'organization_isolation' and obj_description(own.oid, 'pg_policy') = 'cliniko_pipeline'
                or own.polname = 'organization_boundary'
                and not own.polpermissive
                and exists (
                    select from pg_roles
                    where array[pg_roles.oid] = own.polroles and rolname ~ '^cliniko_organization(_[0-9]+)?$'
                )
            )
    )
order by 2, 1
