-- Raises an error about the operator's condition for contacts, if there is a condition. The caller has caught an error
-- while it read contacts. PostgreSQL's message is repeated only if it is about the text of the condition. Other
-- messages may contain values of rows.
create or replace function cliniko.refuse_contacts_filter(state text, message text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
begin
    if state <> '42501' and exists (select from cliniko.contacts_filter) then
        raise exception using
            errcode = 'CP002',
            message = concat(
                'The condition in CLINIKO_CONTACTS_FILTER fails on public.contacts (SQLSTATE ', state,
                case when left(state, 2) = '42' then ': ' || message end,
                '), so nothing was written. Correct the condition, which must be true or false for every contact, and'
                ' run `cliniko-pipeline migrate`.'
            );
    end if;
end
$function$;
