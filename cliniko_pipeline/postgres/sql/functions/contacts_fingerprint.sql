-- Another text whenever the contacts of the organization in whose context it is called have changed in what
-- organization_contacts gives of them, or the operator's condition has. By contents: a table, its partitions or a view
-- are all the same, and neither a restore nor a column of no interest is a change.
create or replace function cliniko.contacts_fingerprint() returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- As in organization_contacts.
set row_security = off
as $function$
declare
    fingerprint text;
begin
    perform cliniko.require_visible_contacts();
    begin
        execute
            $$
                select
                    concat_ws(
                        ' ',
                        count(*),
                        sum(
                            hash_record_extended(
                                row(cliniko_patient_id, name, email, first_name, last_name),
                                -- Not a column more: a row's hash is a sum of its columns', and two rows that
                                -- exchanged one would come to the same.
                                uuid_hash_extended(id, 0)
                            )
                        )
                    )
                from ($$ || cliniko.contacts_query() || $$) as contact
            $$
        into fingerprint;
    exception
        when data_exception or syntax_error_or_access_rule_violation or raise_exception then
            perform cliniko.refuse_contacts_filter(sqlstate, sqlerrm);
            raise;
    end;
    return concat_ws(' ', fingerprint, (select md5(condition) from cliniko.contacts_filter));
end
$function$;
