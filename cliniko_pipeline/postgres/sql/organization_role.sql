-- The role that statements on tenant data run as, and the right of the user who migrates to switch to it.
do $$
declare
    -- From version 16 on a member need not have the right to switch to the role; who creates one has not.
    membership constant text :=
        case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end;
begin
    -- Roles belong to the server, not the database: another database's pipeline may have made it, or make it now.
    for attempt in 1..3 loop
        begin
            if not exists (select from pg_roles where rolname = 'cliniko_organization') then
                create role cliniko_organization nologin nobypassrls noinherit;
            end if;
            if not pg_has_role(current_user, 'cliniko_organization', membership) then
                execute format('grant cliniko_organization to %I', current_user);
            end if;
            exit;
        exception when duplicate_object or unique_violation then
            continue;
        end;
    end loop;
    -- Staging tables are temporary ones.
    execute format('grant temporary on database %I to cliniko_organization', current_database());
end
$$
