-- Who may switch to the organization role and has no business with it: not the database user, nobody that may become
-- it or the owner of the pipeline's tables, no superuser, and nobody that may read the stored credentials as a user of
-- the pipeline does.
select distinct quote_ident(member.rolname) as name
from pg_auth_members as membership
inner join pg_roles as member on member.oid = membership.member
where membership.roleid = (select oid from pg_roles where rolname = :role)
    -- From version 16 on a member need not have the right to switch to the role.
    and coalesce(to_jsonb(membership) ->> 'set_option', 'true') = 'true'
    and not member.rolsuper
    and not pg_has_role(member.oid, current_user, 'member')
    and not exists (
        select from pg_namespace where nspname = 'cliniko' and pg_has_role(member.oid, nspowner, 'member')
    )
    and not coalesce(has_table_privilege(member.oid, to_regclass('public.api_credentials'), 'select'), false)
order by name
