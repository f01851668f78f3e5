-- Enters the organization context. Until the end of the transaction, statements see and write one organization's rows
-- only.
select
    set_config('statement_timeout', :statement_timeout, true),
    set_config('lock_timeout', :lock_timeout, true),
    set_config('synchronous_commit', coalesce(:synchronous_commit, current_setting('synchronous_commit')), true),
    set_config('TimeZone', 'UTC', true),
    -- The planner guesses a few rows for steps of a query and for tables without statistics. After a wrong guess a nested
    -- loop takes hours instead of seconds. After a right guess a hash join takes a millisecond more.
    set_config('enable_nestloop', 'off', true),
    set_config('jit', 'off', true),
    -- In kB, at least 16 MB. With PostgreSQL's default of 4 MB, a large clinic's aggregates go to disk.
    set_config('work_mem', greatest(pg_size_bytes(current_setting('work_mem')) / 1024, 16 * 1024)::text, true),
    set_config('app.organization_id', :organization_id, true),
    -- The name is that of organization_role_name.sql.
    set_config(
        'role', (select 'cliniko_organization_' || oid from pg_database where datname = current_database()), true
    )
