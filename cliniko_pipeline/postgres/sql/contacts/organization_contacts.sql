-- Returns the contacts of the current organization only.
--
-- public.contacts belongs to the application, so the pipeline adds no policy to it. The organization role has no
-- privilege on the table. The role reads contacts only through functions such as this one, which run with their owner's
-- privileges. Each call resolves the table's name anew, so the function does not block the application's migrations.
--
-- With row_security off PostgreSQL raises an error if a policy would hide contacts. Hidden contacts would seem deleted.
create or replace function cliniko.organization_contacts()
returns table (id uuid, cliniko_patient_id text, name text, email text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set row_security = off
rows 10000
as $function$
begin
    perform cliniko.require_visible_contacts();
    begin
        return query execute
            $$
                select
                    id,
                    -- People often copy the id by hand with white space around it.
                    nullif(
                        btrim(
                            cliniko_patient_id,
                            U&'\0009\000A\000B\000C\000D\001C\001D\001E\001F\0020\0085\00A0\1680\2000\2001\2002\2003\2004'
                            '\2005\2006\2007\2008\2009\200A\2028\2029\202F\205F\3000'
                        ),
                        ''
                    ),
                    -- The regular expression is a fast test, which recognizes most names that are not blank.
                    case
                        when name ~ '[!-~]' or cliniko.name_key(name) is not null then name
                        else nullif(concat_ws(' ', first_name, last_name), '')
                    end,
                    email
                from ($$ || cliniko.contacts_query() || $$) as contact
            $$;
    exception
        when data_exception or syntax_error_or_access_rule_violation or raise_exception then
            perform cliniko.refuse_contacts_filter(sqlstate, sqlerrm);
            raise;
    end;
end
$function$;
