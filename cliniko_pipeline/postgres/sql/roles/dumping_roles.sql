-- Whether the database user can dump tables under row-level security, and the other roles that can, except superusers.
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
