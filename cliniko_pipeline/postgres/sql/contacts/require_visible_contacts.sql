-- Raises an error if the application's policies hide contacts from the current role, which is the owner of the calling
-- function.
--
-- The callers run with row_security off, so PostgreSQL would reject their queries even if the policies show every row.
-- In that case row_security is switched on until the calling function ends.
--
-- This function has no `set` clause, because PostgreSQL would then undo the change of row_security when this function
-- ends. The calling functions have set the search path.
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
            'Row-level security of public.contacts hides contacts from the database user ', reader, ', who reads'
            ' contacts for the pipeline. Hidden contacts would seem deleted, so nothing was written. Run ',
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
            '`alter role ', reader, ' bypassrls` as a superuser. If the application connects as ', reader, ', too,'
            ' first give the pipeline its own database user. Otherwise the application would see all contacts, too.'
        );
end
$function$;
