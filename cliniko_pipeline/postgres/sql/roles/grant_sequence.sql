-- The organization role inserts rows into active_patients, so it needs the sequence of the ids, if there is one.
do $$
declare
    ids text := pg_get_serial_sequence('public.active_patients', 'id');
begin
    if ids is not null then
        execute format('grant usage on sequence %s to {role}', ids);
    end if;
end
$$
