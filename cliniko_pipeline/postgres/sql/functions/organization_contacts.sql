-- The contacts of the organization in whose context it is called, and of no other.
--
-- public.contacts belongs to the application: the pipeline puts no policy on it, and the organization role has no right
-- to it. This function, which runs with its owner's rights, is the only way to it. It refers to the table by name only
-- when called, so that nothing of the pipeline stands in the way of the application's own migrations.
create or replace function cliniko.organization_contacts()
returns table (id uuid, cliniko_patient_id text, name text, email text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
rows 10000
as $function$
declare
    -- Older applications have no first and last name here, only the whole.
    has_parts constant boolean := 2 = (
        select count(*)
        from pg_attribute
        where attrelid = to_regclass('public.contacts')
            and attname in ('first_name', 'last_name')
            and attnum > 0
            and not attisdropped
    );
    parts constant text := case when has_parts then $$concat_ws(' ', first_name, last_name)$$ else 'null' end;
    -- Where organizations are texts an index finds their contacts; elsewhere (uuid, ...) they are compared as texts only.
    is_text constant boolean := exists (
        select
        from pg_attribute
        where attrelid = to_regclass('public.contacts')
            and attname = 'organization_id'
            and atttypid in ('text'::regtype, 'varchar'::regtype)
    );
    indexed constant text := case
        when is_text then $$organization_id = nullif(current_setting('app.organization_id', true), '')$$
        else 'true'
    end;
begin
    return query execute
        $$
            select
                id,
                -- Copied by hand, often with white space of any kind around it.
                nullif(
                    btrim(
                        cliniko_patient_id::text,
                        U&'\0009\000A\000B\000C\000D\001C\001D\001E\001F\0020\0085\00A0\1680\2000\2001\2002\2003\2004'
                        '\2005\2006\2007\2008\2009\200A\2028\2029\202F\205F\3000'
                    ),
                    ''
                ),
                -- A visible letter of ASCII is seen at a glance.
                case
                    when name::text collate "C" ~ '[!-~]' or cliniko.name_key(name) is not null then name::text
                    else $$ || parts || $$
                end,
                email::text
            from public.contacts
            where $$ || indexed || $$
                -- The column's collation may take two organizations for one.
                and organization_id::text collate "C" = nullif(current_setting('app.organization_id', true), '')
        $$;
end
$function$;
