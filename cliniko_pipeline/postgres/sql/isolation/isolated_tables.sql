-- The tables with the pipeline's policy, including tables of the operator's own assets. The comment of the policy
-- distinguishes it from an application's policy of the same name.
select
    format('%I.%I', pg_namespace.nspname, pg_class.relname) as name,
    quote_ident(pg_namespace.nspname) as schema
from pg_policy
inner join pg_class on pg_class.oid = pg_policy.polrelid
inner join pg_namespace on pg_namespace.oid = pg_class.relnamespace
where pg_policy.polname = 'organization_isolation'
    and obj_description(pg_policy.oid, 'pg_policy') = 'cliniko_pipeline'
    and not pg_class.relispartition
order by name
