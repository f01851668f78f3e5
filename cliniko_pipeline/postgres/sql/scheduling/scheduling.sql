-- All organizations with Cliniko credentials, with their schedules and states.
select
    credentials.organization_id::text as organization_id,
    credentials.is_active,
    coalesce(scheduling.is_on, true) as is_on,
    scheduling.sync_every_minutes,
    scheduling.full_sync_at,
    scheduling.time_zone,
    scheduling.requested_at,
    scheduling.full_requested_at,
    scheduling.counts_requested_at,
    scheduling.known_since,
    scheduling.succeeded_at,
    scheduling.verified_at,
    coalesce(scheduling.failures, 0) as failures,
    scheduling.failure_reason,
    scheduling.failed_run_id,
    coalesce(scheduling.failure_is_permanent, false) as failure_is_permanent,
    scheduling.retry_at,
    scheduling.paused_at,
    scheduling.pause_reason
from public.api_credentials as credentials
left join cliniko.scheduling as scheduling on scheduling.organization_id = credentials.organization_id::text
where credentials.service_name = :service
order by 1
