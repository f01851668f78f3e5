-- Stores that a probe has found the organization's rows right for the instant :at. The rows are others if a sync has
-- succeeded since :succeeded_at.
update cliniko.scheduling
set
    verified_at = :at,
    read_began_at = case
        -- The stored time is in the future if the clock was set back.
        when read_began_at > now() then cast(:at as timestamptz)
        else greatest(read_began_at, cast(:at as timestamptz))
    end,
    failures = 0,
    failure_reason = null,
    failed_run_id = null,
    failure_is_permanent = false,
    retry_at = null,
    refused_at = null,
    refused_run_id = null,
    refused_credentials = null
where organization_id = :organization_id
    and succeeded_at is not distinct from cast(:succeeded_at as timestamptz)
