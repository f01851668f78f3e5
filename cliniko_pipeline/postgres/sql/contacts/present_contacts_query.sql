-- Returns the text of the query for the current organization's contacts, with all columns, without soft-deleted ones.
create or replace function cliniko.present_contacts_query() returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
declare
    contacts constant regclass := to_regclass('public.contacts');
    -- Text columns are also compared directly, so that an index is used; other types (uuid, ...) only as text.
    is_text constant boolean := exists (
        select
        from pg_attribute
        where attrelid = contacts
            and attname = 'organization_id'
            and atttypid in ('text'::regtype, 'varchar'::regtype)
    );
    -- Soft-deleted contacts do not count.
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
