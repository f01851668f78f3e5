-- All tables that inherit from tables in :names, at any depth. They can be read directly, so they need policies, too.
with recursive parts as (
    select inhrelid as oid
    from pg_inherits
    where inhparent = any(select to_regclass(named) from unnest(cast(:names as text[])) as named)
    union
    select pg_inherits.inhrelid
    from pg_inherits
    inner join parts on parts.oid = pg_inherits.inhparent
)

select
    format('%I.%I', pg_namespace.nspname, pg_class.relname) as name,
    pg_class.relkind = 'f' as is_foreign
from parts
inner join pg_class on pg_class.oid = parts.oid
inner join pg_namespace on pg_namespace.oid = pg_class.relnamespace
order by name
