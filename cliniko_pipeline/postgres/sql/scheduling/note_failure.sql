-- The delays of retries are 1, 2, 4 ... minutes, at most an hour. After a refusal of the credentials they are 1, 5, 25
-- ... minutes, so that the third attempt can confirm the refusal. A permanent failure is not retried before the next
-- sync is due. The failure of a run that started before the last success is ignored.
insert into cliniko.scheduling as scheduling (
    organization_id, failures, failure_reason, failed_run_id, failure_is_permanent, retry_at
)
select
    credentials.organization_id::text,
    1,
    :reason,
    :run_id,
    :is_permanent,
    case when not :is_permanent then now() + interval '1 minute' end
from public.api_credentials as credentials
where credentials.organization_id::text = :organization_id and credentials.service_name = :service
on conflict (organization_id) do update
set
    failures = scheduling.failures + 1,
    failure_reason = excluded.failure_reason,
    failed_run_id = excluded.failed_run_id,
    failure_is_permanent = excluded.failure_is_permanent,
    retry_at = case
        when not excluded.failure_is_permanent
            then now() + least(
                interval '1 minute'
                * (case when scheduling.refused_at is null then 2 else 5 end) ^ least(scheduling.failures, 10),
                interval '1 hour'
            )
    end
where scheduling.succeeded_at is null or scheduling.succeeded_at < :started_at
