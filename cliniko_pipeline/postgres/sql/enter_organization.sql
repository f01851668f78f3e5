-- Everything until the end of the transaction sees and writes the rows of one organization only.
select
    set_config('statement_timeout', :statement_timeout, true),
    set_config('lock_timeout', :lock_timeout, true),
    set_config('synchronous_commit', coalesce(:synchronous_commit, current_setting('synchronous_commit')), true),
    set_config('TimeZone', 'UTC', true),
    set_config('app.organization_id', :organization_id, true),
    set_config('role', :role, true)
