-- Another number whenever the contacts of the organization in whose context it is called have changed in what
-- organization_contacts gives of them. By contents: a table, its partitions or a view are all the same, and neither a
-- restore nor a column of no interest is a change.
create or replace function cliniko.contacts_fingerprint() returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    -- Both as in organization_contacts.
    has_parts constant boolean := 2 = (
        select count(*)
        from pg_attribute
        where attrelid = to_regclass('public.contacts')
            and attname in ('first_name', 'last_name')
            and attnum > 0
            and not attisdropped
    );
    is_text constant boolean := exists (
        select
        from pg_attribute
        where attrelid = to_regclass('public.contacts')
            and attname = 'organization_id'
            and atttypid in ('text'::regtype, 'varchar'::regtype)
    );
    -- A collation may take two texts for one.
    parts constant text := case
        when has_parts then $$, first_name::text collate "C", last_name::text collate "C"$$ else ''
    end;
    indexed constant text := case
        when is_text then $$organization_id = (select nullif(current_setting('app.organization_id', true), ''))$$
        else 'true'
    end;
    fingerprint text;
begin
    execute
        $$
            select
                concat_ws(
                    ' ',
                    count(*),
                    sum(
                        hash_record_extended(
                            row(
                                cliniko_patient_id::text collate "C",
                                name::text collate "C",
                                email::text collate "C"
                                $$ || parts || $$
                            ),
                            -- Not a column more: a row's hash is a sum of its columns', and two rows that exchanged one
                            -- would come to the same.
                            uuid_hash_extended(id, 0)
                        )
                    )
                )
            from public.contacts
            where $$ || indexed || $$
                and organization_id::text collate "C"
                    = (select nullif(current_setting('app.organization_id', true), ''))
        $$
    into fingerprint;
    return fingerprint;
end
$function$;
