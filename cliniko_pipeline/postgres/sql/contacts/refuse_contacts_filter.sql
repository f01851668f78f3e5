-- Raises an error about the operator's condition, if there is one, after contacts could not be read. PostgreSQL's own
-- message is repeated only where it is about the condition's text: other messages hold values of rows.
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
                '), so nothing was written. Correct it, so that it holds for every contact or does not, and run'
                ' `cliniko-pipeline migrate`.'
            );
    end if;
end
$function$;
