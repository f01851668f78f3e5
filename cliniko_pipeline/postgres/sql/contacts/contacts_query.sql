-- Returns the text of the query for the current organization's contacts. No other query defines these rows and columns.
--
-- `offset 0` makes PostgreSQL evaluate the operator's condition on the organization's contacts only. The condition can
-- therefore only exclude contacts.
--
-- Texts have the collation "C", because the application's collation may treat different texts as equal.
create or replace function cliniko.contacts_query() returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
declare
    contacts constant regclass := to_regclass('public.contacts');
    -- Older applications have no first and last names.
    has_parts constant boolean := 2 = (
        select count(*)
        from pg_attribute
        where attrelid = contacts and attname in ('first_name', 'last_name') and attnum > 0 and not attisdropped
    );
    filter constant text := (select condition from cliniko.contacts_filter);
begin
    return concat(
        $$
            select
                id,
                cliniko_patient_id::text collate "C" as cliniko_patient_id,
                name::text collate "C" as name,
        $$,
        case
            when has_parts
                then 'first_name::text collate "C" as first_name, last_name::text collate "C" as last_name,'
            else 'null::text as first_name, null::text as last_name,'
        end,
        'email::text collate "C" as email from (',
        cliniko.present_contacts_query(),
        case when filter is not null then ' offset 0' end,
        ') as contacts',
        case when filter is not null then concat(' where (', filter, ')') end
    );
end
$function$;
