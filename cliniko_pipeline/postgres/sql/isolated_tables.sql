-- Every table under the pipeline's policy, those made for the operator's own assets included.
select
    format('%I.%I', pg_namespace.nspname, pg_class.relname) as name,
    quote_ident(pg_namespace.nspname) as schema
from pg_policy
inner join pg_class on pg_class.oid = pg_policy.polrelid
inner join pg_namespace on pg_namespace.oid = pg_class.relnamespace
where pg_policy.polname = 'organization_isolation'
order by name
