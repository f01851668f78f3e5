-- The contacts of the organization in whose context it is called, and of no other.
--
-- public.contacts belongs to the application: the pipeline puts no policy on it, and the organization role has no right
-- to it. This function, which runs with its owner's rights, is the only way to it. It refers to the table by name only
-- when called, so that nothing of the pipeline stands in the way of the application's own migrations.
--
-- With row_security off PostgreSQL raises an error where a policy would hide contacts: they would be taken for deleted.
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
                    -- Copied by hand, often with white space of any kind around it.
                    nullif(
                        btrim(
                            cliniko_patient_id,
                            U&'\0009\000A\000B\000C\000D\001C\001D\001E\001F\0020\0085\00A0\1680\2000\2001\2002\2003\2004'
                            '\2005\2006\2007\2008\2009\200A\2028\2029\202F\205F\3000'
                        ),
                        ''
                    ),
                    -- A visible letter of ASCII is seen at a glance.
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
