-- The organization context: until the end of the transaction, statements see and write one organization's rows only.
select
    set_config('statement_timeout', :statement_timeout, true),
    set_config('lock_timeout', :lock_timeout, true),
    set_config('synchronous_commit', coalesce(:synchronous_commit, current_setting('synchronous_commit')), true),
    set_config('TimeZone', 'UTC', true),
    set_config('app.organization_id', :organization_id, true),
    -- The role of organization_role_name.sql.
    set_config(
        'role', (select 'cliniko_organization_' || oid from pg_database where datname = current_database()), true
    )
