-- The schemas `cliniko` and `dagster`, if they have tables of another program.
select schema.name as schema, array_agg(pg_class.relname::text order by pg_class.relname) as tables
from (
    values ('cliniko', array['schema_version']), ('dagster', array['alembic_version', 'event_logs', 'runs', 'run_tags'])
) as schema (name, own)
inner join pg_class
    on pg_class.relnamespace = to_regnamespace(schema.name) and pg_class.relkind in ('r', 'p', 'v', 'm', 'f')
group by schema.name, schema.own
having not schema.own <@ array_agg(pg_class.relname::text)
order by schema.name
