-- The powers that the organization role has besides privileges on tables, or no row if the role does not exist.
select
    role.rolsuper,
    role.rolbypassrls,
    role.rolcanlogin,
    array(
        select quote_ident(other.rolname)
        from pg_auth_members as membership
        inner join pg_roles as other on other.oid = membership.roleid
        where membership.member = role.oid
        order by other.rolname
    ) as memberships
from pg_roles as role
where role.rolname = :role
