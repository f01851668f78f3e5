-- Descriptions of the missing objects that a migration creates again. missing_keys.sql finds missing unique indexes.
--
-- :active_patients         the table in the application's schema
-- :functions, :bodies      names and texts of the functions
-- :watched                 the tables with triggers that record changes
-- :tenants                 the tenant tables
-- :role                    the organization role
with
role as (
    select oid from pg_roles where rolname = :role
),

own_function as (
    select pg_proc.oid, pg_proc.proname, pg_proc.prosrc
    from pg_proc
    where pg_proc.pronamespace = to_regnamespace('cliniko')
)

select 'the table ' || replace(:active_patients, '"', '')
where to_regclass(:active_patients) is null
union all
select 'the function cliniko.' || wanted.name
from unnest(cast(:functions as text[]), cast(:bodies as text[])) as wanted (name, body)
where not exists (
    select from own_function
    where own_function.proname = wanted.name and coalesce(own_function.prosrc = wanted.body, true)
)
union all
select 'the trigger ' || wanted.name || ' of ' || replace(watched.name, '"', '')
from unnest(cast(:watched as text[])) as watched (name)
cross join (values ('note_insert'), ('note_update'), ('note_delete')) as wanted (name)
where to_regclass(watched.name) is not null
    and not exists (
        select
        from pg_trigger
        where tgrelid = to_regclass(watched.name) and tgname = wanted.name and tgenabled in ('O', 'A')
    )
union all
select 'the role ' || :role
where not exists (select from role)
union all
select 'the privilege of ' || :role || ' to use the schema cliniko'
from role
where not has_schema_privilege(role.oid, to_regnamespace('cliniko'), 'usage')
union all
select 'the privilege of ' || :role || ' to make temporary tables'
from role
where not has_database_privilege(role.oid, current_database(), 'temporary')
union all
select 'the privilege of ' || :role || ' to use the sequence of public.active_patients.id'
from role
where not coalesce(
    has_sequence_privilege(
        role.oid,
        case when to_regclass(:active_patients) is not null then pg_get_serial_sequence(:active_patients, 'id') end,
        'usage'
    ),
    true
)
union all
select 'the privilege of ' || :role || ' to execute cliniko.' || own_function.proname
from role
cross join own_function
where own_function.proname = any(:functions) and not has_function_privilege(role.oid, own_function.oid, 'execute')
union all
select 'the privileges of ' || :role || ' on ' || replace(tenant.name, '"', '')
from role
cross join unnest(cast(:tenants as text[])) as tenant (name)
where to_regclass(tenant.name) is not null
    and not (
        select bool_and(has_table_privilege(role.oid, to_regclass(tenant.name), privilege))
        from unnest(array['select', 'insert', 'update', 'delete']) as privilege
    )
