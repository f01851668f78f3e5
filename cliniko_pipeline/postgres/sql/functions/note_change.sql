-- Changes the table's version and adjusts its row count, after inserts and deletes. An unknown count stays null.
create or replace function cliniko.note_change() returns trigger
language plpgsql
as $function$
declare
    table_name constant text := tg_table_schema || '.' || tg_table_name;
    change record;
begin
    for change in
        select organization_id, case tg_op when 'INSERT' then count(*) else -count(*) end as rows
        from changed
        group by organization_id
        order by organization_id
    loop
        update cliniko.table_states
        set version = gen_random_uuid(), row_count = row_count + change.rows
        where organization_id = change.organization_id and name = table_name;
        -- After a delete no version is inserted, because the organization may be removed.
        if not found and tg_op = 'INSERT' then
            insert into cliniko.table_states as state (organization_id, name)
            values (change.organization_id, table_name)
            on conflict (organization_id, name) do update set version = excluded.version, row_count = null;
        end if;
    end loop;
    return null;
end
$function$;
