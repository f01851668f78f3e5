-- The text of the query that selects the contacts of the organization in whose context it is executed: the one
-- definition of which rows of public.contacts these are, and of the columns that count.
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
    -- Where organizations are texts an index finds their contacts; elsewhere (uuid, ...) they are compared as texts only.
    is_text constant boolean := exists (
        select
        from pg_attribute
        where attrelid = contacts
            and attname = 'organization_id'
            and atttypid in ('text'::regtype, 'varchar'::regtype)
    );
    -- Contacts that the application has deleted softly do not count.
    not_deleted constant text := (
        select string_agg(
            case attname when 'deleted_at' then ' and deleted_at is null' else ' and is_deleted is not true' end, ''
        )
        from pg_attribute
        where attrelid = contacts
            and attnum > 0
            and not attisdropped
            and (
                attname = 'deleted_at' and atttypid in ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype)
                or attname = 'is_deleted' and atttypid = 'boolean'::regtype
            )
    );
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
        $$
                email::text collate "C" as email
            from public.contacts
            where organization_id::text collate "C" = (select nullif(current_setting('app.organization_id', true), ''))
        $$,
        case
            when is_text
                then $$ and organization_id = (select nullif(current_setting('app.organization_id', true), ''))$$
        end,
        not_deleted
    );
end
$function$;
