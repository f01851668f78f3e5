-- Tests what Dagster does as the database user. Each table is read and written without changing a row, and each
-- sequence is used. If Dagster has no tables yet, a table is created.
do $block$
declare
    each text;
begin
    -- PostgreSQL raises an error if a policy would hide rows.
    perform set_config('row_security', 'off', true);
    if to_regnamespace('dagster') is null then
        create schema dagster;
    end if;
    if not exists (select from pg_class where relnamespace = to_regnamespace('dagster') and relkind = 'r') then
        create table dagster.rehearsed ();
    end if;
    for each in
        select format(used.statement, pg_class.oid::regclass, pg_attribute.attname)
        from pg_class
        inner join pg_attribute on attrelid = pg_class.oid and attnum = 1
        cross join unnest(array[
            'select from %1$s limit 0',
            'insert into %1$s select * from %1$s limit 0',
            'update %1$s set %2$I = %2$I where false',
            'delete from %1$s where false'
        ]) as used (statement)
        where relnamespace = to_regnamespace('dagster') and relkind = 'r'
        union all
        select format('select nextval(%L)', oid::regclass)
        from pg_class
        where relnamespace = to_regnamespace('dagster') and relkind = 'S'
    loop
        execute each;
    end loop;
    perform set_config('row_security', 'on', true);
end
$block$
