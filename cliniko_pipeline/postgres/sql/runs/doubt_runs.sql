-- Marks runs with old heartbeats as doubtful, until the next heartbeat. A run without a heartbeat gets an entry.
with added as (
    insert into cliniko.run_heartbeats (run_id)
    select run_id from unnest(cast(:run_ids as text[])) as run_id
    on conflict do nothing
)
update cliniko.run_heartbeats
set doubted_at = clock_timestamp()
where run_id = any(:run_ids) and doubted_at is null and beat_at < clock_timestamp() - cast(:silence as interval)
