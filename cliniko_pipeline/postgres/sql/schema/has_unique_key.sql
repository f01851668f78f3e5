-- Whether `on conflict` on these columns, sorted, finds a unique index, in a table that is there; where the index may be
-- deferred, whether there is one.
select to_regclass(:keyed) is null or exists (
    select
    from pg_index
    where pg_index.indrelid = to_regclass(:keyed)
        and pg_index.indisunique and (pg_index.indimmediate or :is_deferred) and pg_index.indisvalid
        and pg_index.indpred is null and pg_index.indexprs is null
        and cast(:key as text) = (
            select string_agg(attname, ',' order by attname collate "C")
            from pg_attribute
            where attrelid = pg_index.indrelid
                and attnum = any((pg_index.indkey::smallint[])[0:pg_index.indnkeyatts - 1])
        )
)
