-- How the database user stands to dumps: whether row-level security holds it, and which roles beside superusers dump.
select
    rolsuper or rolbypassrls as may_dump,
    quote_ident(rolname) as name,
    array(
        select quote_ident(other.rolname)
        from pg_roles as other
        where other.rolbypassrls and other.rolcanlogin and not other.rolsuper
            and has_table_privilege(other.oid, to_regclass(:table), 'select')
        order by other.rolname
    ) as others
from pg_roles
where rolname = session_user
