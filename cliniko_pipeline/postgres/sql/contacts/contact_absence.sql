-- Returns why the pipeline ignores a contact of the current organization, or null if it uses the contact. The reasons
-- are `deleted`, `soft_deleted`, and `filtered` if the operator's condition excludes the contact.
create or replace function cliniko.contact_absence(sought uuid) returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- See organization_contacts.
set row_security = off
as $function$
declare
    absence text;
begin
    if exists (select from cliniko.organization_contacts() as contact where contact.id = sought) then
        return null;
    end if;
    perform cliniko.require_visible_contacts();
    execute
        $$
            select
                case
                    when exists (select from ($$ || cliniko.present_contacts_query() || $$) as contact where id = $1)
                        then 'filtered'
                    when exists (
                        select
                        from public.contacts
                        where
                            id = $1
                            and organization_id::text collate "C"
                            = nullif(current_setting('app.organization_id', true), '')
                    )
                        then 'soft_deleted'
                    else 'deleted'
                end
        $$
    into absence
    using sought;
    return absence;
end
$function$;
