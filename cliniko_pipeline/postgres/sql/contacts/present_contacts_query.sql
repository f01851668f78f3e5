-- Returns the text of a query for all columns of the current organization's contacts, except soft-deleted contacts.
create or replace function cliniko.present_contacts_query() returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
declare
    contacts constant regclass := to_regclass('public.contacts');
    -- A text column is also compared without a cast, so that an index is used. Other types are compared as text only.
    is_text constant boolean := exists (
        select
        from pg_attribute
        where attrelid = contacts
            and attname = 'organization_id'
            and atttypid in ('text'::regtype, 'varchar'::regtype)
    );
    -- The conditions that exclude soft-deleted contacts, for the columns that the application has.
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
            select *
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
