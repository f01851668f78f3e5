-- Whether `insert ... on conflict (organization_id, service_name)` finds what it needs. Of a view nothing is known.
select
    (select relkind from pg_class where oid = 'public.api_credentials'::regclass) not in ('r', 'p')
    or exists (
        select
        from pg_index
        where indrelid = 'public.api_credentials'::regclass
            and indisunique and indimmediate and indisvalid
            and indpred is null and indexprs is null
            and indnkeyatts = 2
            and (
                select array_agg(attname::text order by attname)
                from pg_attribute
                where attrelid = indrelid and attnum = any((indkey::smallint[])[0:1])
            ) = array['organization_id', 'service_name']
    ) as is_there
