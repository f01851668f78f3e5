-- The tables that have both of the pipeline's policies but no comment on them, since earlier versions added no comment.
--
-- is_made_for_an_asset is whether the table looks like one that the pipeline created for an operator's asset. Such a
-- table starts with the column organization_id, and has no constraint, no index and no default. Other tables may belong
-- to the application.
select
    format('%I.%I', pg_namespace.nspname, pg_class.relname) as name,
    coalesce(
        pg_class.relkind = 'r'
        and pg_attribute.attname = 'organization_id'
        and pg_attribute.atttypid = 'text'::regtype
        and pg_attribute.attnotnull
        and pg_has_role(pg_class.relowner, 'member')
        and not exists (select from pg_attrdef where adrelid = pg_class.oid)
        and not exists (select from pg_index where indrelid = pg_class.oid)
        and not exists (select from pg_constraint where conrelid = pg_class.oid and contype <> 'n'),
        false
    ) as is_made_for_an_asset
from pg_policy as isolation
inner join pg_policy as boundary
    on boundary.polrelid = isolation.polrelid
    and boundary.polname = 'organization_boundary'
    and not boundary.polpermissive
inner join pg_class on pg_class.oid = isolation.polrelid
inner join pg_namespace on pg_namespace.oid = pg_class.relnamespace
left join pg_attribute on pg_attribute.attrelid = pg_class.oid and pg_attribute.attnum = 1
where isolation.polname = 'organization_isolation'
    and obj_description(isolation.oid, 'pg_policy') is distinct from 'cliniko_pipeline'
    and not pg_class.relispartition
    and pg_class.oid <> all(select to_regclass(named) from unnest(cast(:names as text[])) as named)
    and exists (
        select from pg_roles
        where array[pg_roles.oid] = boundary.polroles and rolname ~ '^cliniko_organization(_[0-9]+)?$'
    )
order by name
