-- Without a delay it is over: taken, or given up.
update cliniko.webhook_deliveries
set
    attempts = attempts + 1,
    outcome = :outcome,
    is_taken = :is_taken,
    send_at = now() + cast(:delay as interval),
    ended_at = case when cast(:delay as interval) is null then now() end
where organization_id = :organization_id and run_id = :run_id
