insert into cliniko.scheduling as scheduling (organization_id, succeeded_at, verified_at, read_began_at)
values (:organization_id, now(), least(cast(:as_of as timestamptz), now()), :read_began_at)
on conflict (organization_id) do update
set
    succeeded_at = excluded.succeeded_at,
    -- A sync for an earlier instant makes the rows older.
    verified_at = excluded.verified_at,
    read_began_at = case
        -- The stored time is in the future if the clock was set back.
        when scheduling.read_began_at > now() then coalesce(excluded.read_began_at, scheduling.read_began_at)
        else greatest(scheduling.read_began_at, excluded.read_began_at)
    end,
    failures = 0,
    failure_reason = null,
    failed_run_id = null,
    failure_is_permanent = false,
    retry_at = null,
    paused_at = null,
    pause_reason = null,
    paused_credentials = null,
    refused_at = null,
    refused_run_id = null,
    refused_credentials = null
