-- Changes the table's version, after updates. If a manual update affects several organizations, row counts become null.
create or replace function cliniko.note_update() returns trigger
language plpgsql
as $function$
declare
    table_name constant text := tg_table_schema || '.' || tg_table_name;
    organizations constant text[] := array(
        select organization_id from changed union select organization_id from former order by organization_id
    );
    organization text;
begin
    foreach organization in array organizations loop
        insert into cliniko.table_states as state (organization_id, name)
        values (organization, table_name)
        on conflict (organization_id, name) do update
        set
            version = excluded.version,
            row_count = case when cardinality(organizations) = 1 then state.row_count end;
    end loop;
    return null;
end
$function$;
