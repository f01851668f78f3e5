-- The text of the query that selects the contacts of the organization in whose context it is executed: the one
-- definition of which rows of public.contacts these are, and of the columns that count.
--
-- The operator's condition is around the organization's contacts, and computed for no others (`offset 0`): whatever it
-- says, it can only leave contacts out.
--
-- Texts are in the collation "C": a collation of the application's may take two for one.
create or replace function cliniko.contacts_query() returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
declare
    contacts constant regclass := to_regclass('public.contacts');
    -- Older applications have no first and last name here, only the whole.
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
