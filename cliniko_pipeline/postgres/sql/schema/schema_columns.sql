-- From the catalog, not information_schema, which hides what the user has no right to.
select
    pg_class.relname as table_name,
    array_agg(pg_attribute.attname::text order by pg_attribute.attnum) as column_names
from pg_class
inner join pg_attribute on pg_attribute.attrelid = pg_class.oid
where pg_class.relnamespace = to_regnamespace(:schema)
    and pg_class.relkind in ('r', 'p', 'v', 'm', 'f')
    and pg_attribute.attnum > 0
    and not pg_attribute.attisdropped
group by pg_class.relname
