-- The statements that grant missing privileges to the database user. It needs privileges on the application's tables.
-- For a migration it also needs privileges to create and change the pipeline's objects.
--
-- :tables, :privileges    the application's tables, and the privileges that the pipeline needs on each
-- :migrates               whether a migration will change something
-- :active_patients        the table in the application's schema
select format('grant %s on public.%I to %I', string_agg(lacked.privilege, ', '), named.name, current_user) as remedy
from unnest(cast(:tables as text[]), cast(:privileges as text[])) as named (name, privileges)
cross join lateral regexp_split_to_table(named.privileges, ', ') as lacked (privilege)
where not has_table_privilege(to_regclass('public.' || named.name), lacked.privilege)
group by named.name
union all
select format('grant usage on schema public to %I', current_user)
where not has_schema_privilege('public', 'usage')
union all
select format('grant create on schema public to %I', current_user)
where cast(:migrates as boolean) and not has_schema_privilege('public', 'create')
union all
select format('grant create on database %I to %I', current_database(), current_user)
where cast(:migrates as boolean)
    and to_regnamespace('cliniko') is null
    and not has_database_privilege(current_database(), 'create')
union all
select format('alter table %s owner to %I', cast(:active_patients as text), current_user)
from pg_class
where cast(:migrates as boolean) and oid = to_regclass(cast(:active_patients as text)) and not pg_has_role(relowner, 'usage')
