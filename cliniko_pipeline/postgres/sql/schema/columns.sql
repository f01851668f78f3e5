-- The columns of the tables and views in :names, or of all tables and views if :names is null. information_schema is
-- not used, because it hides columns on which the database user has no privilege.
select
    pg_class.relname as table_name,
    pg_class.relkind in ('r', 'p') as is_table,
    array_agg(pg_attribute.attname::text order by pg_attribute.attnum) as column_names,
    array_agg(format_type(pg_attribute.atttypid, null) order by pg_attribute.attnum) as column_types
from pg_class
inner join pg_attribute on pg_attribute.attrelid = pg_class.oid
where pg_class.relnamespace = to_regnamespace(:schema)
    and pg_class.relkind in ('r', 'p', 'v', 'm', 'f')
    and (cast(:names as text[]) is null or pg_class.relname = any(cast(:names as text[])))
    and pg_attribute.attnum > 0
    and not pg_attribute.attisdropped
group by pg_class.relname, pg_class.relkind
