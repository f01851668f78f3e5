-- Whether api_credentials.created_by accepts any text. In some applications it is the id of a user.
select exists (
    select
    from pg_attribute
    inner join pg_type on pg_type.oid = pg_attribute.atttypid
    where attrelid = 'public.api_credentials'::regclass
        and attname = 'created_by'
        and not attisdropped
        and pg_type.typcategory = 'S'
        and not exists (
            select
            from pg_constraint
            where conrelid = pg_attribute.attrelid and contype = 'f' and pg_attribute.attnum = any(conkey)
        )
)
