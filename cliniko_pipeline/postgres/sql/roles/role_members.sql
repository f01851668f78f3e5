-- The unexpected roles that may switch to the organization role. Expected are superusers, and roles that may become the
-- database user or the owner of the schema cliniko. Also expected are roles that may read the stored credentials, as
-- other users of the pipeline do.
select distinct quote_ident(member.rolname) as name
from pg_auth_members as membership
inner join pg_roles as member on member.oid = membership.member
where membership.roleid = (select oid from pg_roles where rolname = :role)
    -- Since version 16 a member without `set_option` may not switch to the role.
    and coalesce(to_jsonb(membership) ->> 'set_option', 'true') = 'true'
    and not member.rolsuper
    and not pg_has_role(member.oid, current_user, 'member')
    and not exists (
        select from pg_namespace where nspname = 'cliniko' and pg_has_role(member.oid, nspowner, 'member')
    )
    and not coalesce(has_table_privilege(member.oid, to_regclass('public.api_credentials'), 'select'), false)
order by name
