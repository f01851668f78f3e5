-- Each failure in a row doubles the wait: 1, 2, 4 ... minutes, an hour at most.
insert into cliniko.scheduling as scheduling (organization_id, failures, retry_at)
values (:organization_id, 1, now() + interval '1 minute')
on conflict (organization_id) do update
set
    failures = scheduling.failures + 1,
    retry_at = now() + least(interval '1 minute' * 2 ^ least(scheduling.failures, 10), interval '1 hour')
