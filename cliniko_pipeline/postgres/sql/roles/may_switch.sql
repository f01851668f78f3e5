-- The database user, quoted, and whether it may switch to the role. Since version 16 members need an option for this.
select
    quote_ident(current_user) as database_user,
    exists (
        select from pg_roles
        where rolname = :role
            and pg_has_role(
                current_user,
                oid,
                case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end
            )
    ) as may_switch
