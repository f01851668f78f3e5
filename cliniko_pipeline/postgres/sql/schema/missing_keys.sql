-- The positions, from 1, of the keys without a unique index that `on conflict` can use. Keys of missing tables and of
-- views are left out.
--
-- :tables      the name of each key's table
-- :keys        the columns of each key, sorted and separated by commas
-- :deferred    whether each key's index may be deferred
select named.position
from
    unnest(cast(:tables as text[]), cast(:keys as text[]), cast(:deferred as boolean[]))
        with ordinality as named (name, key, is_deferred, position)
inner join pg_class on pg_class.oid = to_regclass(named.name) and pg_class.relkind in ('r', 'p')
where not exists (
    select
    from pg_index
    where pg_index.indrelid = pg_class.oid
        and pg_index.indisunique and (pg_index.indimmediate or named.is_deferred) and pg_index.indisvalid
        and pg_index.indpred is null and pg_index.indexprs is null
        and named.key = (
            select string_agg(attname, ',' order by attname collate "C")
            from pg_attribute
            where attrelid = pg_class.oid and attnum = any((pg_index.indkey::smallint[])[0:pg_index.indnkeyatts - 1])
        )
)
order by named.position
