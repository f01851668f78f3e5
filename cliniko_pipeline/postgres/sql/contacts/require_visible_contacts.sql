-- Raises an error where the application's policies hide contacts from the calling role, the owner of
-- organization_contacts. Where its policies show that role all rows, it switches row_security on until the calling
-- function ends.
--
-- It sets no search path, because that would end the setting of row_security too. Its callers have set theirs.
create or replace function cliniko.require_visible_contacts() returns void
language plpgsql stable
as $function$
declare
    contacts constant regclass := to_regclass('public.contacts');
    reader constant text := quote_ident(current_user);
    has_restrictive boolean;
    sees_all boolean;
begin
    if contacts is null or not row_security_active(contacts) then
        return;
    end if;
    select
        coalesce(bool_or(not polpermissive), false),
        coalesce(bool_or(polpermissive and pg_get_expr(polqual, polrelid) = 'true'), false)
    into has_restrictive, sees_all
    from pg_policy
    where polrelid = contacts
        and polcmd in ('r', '*')
        and exists (
            select from unnest(polroles) as granted (role)
            where granted.role = 0 or pg_has_role(current_user, granted.role, 'usage')
        );
    if sees_all and not has_restrictive then
        perform set_config('row_security', 'on', true);
        return;
    end if;
    raise exception using
        errcode = 'CP001',
        message = concat(
            'Row-level security of public.contacts hides contacts from the database user ', reader, ', as which the'
            ' pipeline reads them. They would seem deleted, so nothing was written. Run ',
            case
                when not has_restrictive
                    then concat(
                        '`create policy cliniko_pipeline on public.contacts for select to ', reader, ' using (true)` as'
                        ' the table''s owner, or '
                    )
                when exists (
                    select from pg_class
                    where oid = contacts and relforcerowsecurity and pg_has_role(current_user, relowner, 'usage')
                )
                    then '`alter table public.contacts no force row level security`, or '
            end,
            '`alter role ', reader, ' bypassrls` as a superuser. Where the application connects as ', reader,
            ', too, give the pipeline a database user of its own first: either opens the table to it.'
        );
end
$function$;
