-- What a migration makes again, in words.
--
-- :active_patients         the table in the application's schema
-- :functions, :bodies      names and texts of the functions
-- :watched                 the tables whose changes triggers note
-- :keyed, :keys, :deferred tables, the sorted columns of a unique index of each, and whether that may be deferred
-- :tenants                 the tables of the organizations
-- :role                    the role of the organizations
with
role as (
    select oid from pg_roles where rolname = :role
),

own_function as (
    select pg_proc.oid, pg_proc.proname, pg_proc.prosrc
    from pg_proc
    where pg_proc.pronamespace = to_regnamespace('cliniko')
),

keyed as (
    select to_regclass(named.name) as oid, named.name, named.key, named.is_deferred
    from
        unnest(cast(:keyed as text[]), cast(:keys as text[]), cast(:deferred as boolean[]))
            as named (name, key, is_deferred)
)

select 'the table ' || replace(:active_patients, '"', '')
where to_regclass(:active_patients) is null
union all
select 'the unique index of ' || replace(keyed.name, '"', '') || ' (' || keyed.key || ')'
from keyed
where keyed.oid is not null
    and not exists (
        select
        from pg_index
        where pg_index.indrelid = keyed.oid
            and pg_index.indisunique and (pg_index.indimmediate or keyed.is_deferred) and pg_index.indisvalid
            and pg_index.indpred is null and pg_index.indexprs is null
            and keyed.key = (
                select string_agg(attname, ',' order by attname collate "C")
                from pg_attribute
                where attrelid = keyed.oid and attnum = any((pg_index.indkey::smallint[])[0:pg_index.indnkeyatts - 1])
            )
    )
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
