-- The unique indexes on contact_id without organization_id.
select pg_index.indexrelid::regclass::text
from pg_index
where pg_index.indrelid = to_regclass(:table)
    and pg_index.indisunique
    and array['contact_id'] = (
        select array_agg(attname::text)
        from pg_attribute
        where attrelid = pg_index.indrelid and attnum = any((pg_index.indkey::smallint[])[0:pg_index.indnkeyatts - 1])
    )
order by 1
