-- Without a delay the delivery has ended, because it was accepted or given up. With a delay the target has failed. The
-- target's other due deliveries are then postponed, so that they do not use up the time for sending.
with
postponed as (
    update cliniko.webhook_deliveries
    set send_at = now() + least(cast(:delay as interval), interval '5 minutes')
    where organization_id = :organization_id
        and run_id <> :run_id
        and send_at <= now()
        and cast(:delay as interval) is not null
)

update cliniko.webhook_deliveries
set
    attempts = attempts + 1,
    outcome = :outcome,
    is_taken = :is_taken,
    send_at = now() + cast(:delay as interval),
    ended_at = case when cast(:delay as interval) is null then now() end
where organization_id = :organization_id and run_id = :run_id
