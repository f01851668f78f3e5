-- Writers of active_patients need the sequence of its ids, if it has one.
do $$
declare
    ids text := pg_get_serial_sequence('public.active_patients', 'id');
begin
    if ids is not null then
        execute format('grant usage on sequence %s to {role}', ids);
    end if;
end
$$
