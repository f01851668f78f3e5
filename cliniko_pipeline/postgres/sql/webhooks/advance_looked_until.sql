-- The margin of a minute is for runs that have just started, because their rows may not be committed yet.
update cliniko.webhook_targets
set looked_until = least(now() - interval '1 minute', cast(:oldest as timestamptz))
where organization_id = :organization_id
    and set_at = :set_at
    and looked_until < least(now() - interval '1 minute', cast(:oldest as timestamptz)) - cast(:max_lag as interval)
