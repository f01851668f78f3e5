-- Returns a text that changes with the operator's condition and the current organization's contacts. The text depends
-- only on the columns that the pipeline reads, so a restore or a new column does not change it.
create or replace function cliniko.contacts_fingerprint() returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- See organization_contacts.
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
                                -- The seed is the id, so that the sum changes if two rows exchange a value. A row's
                                -- hash is itself a sum over columns.
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
