-- A run that has just begun may not be seen yet.
update cliniko.webhook_targets
set looked_until = least(now() - interval '1 minute', cast(:oldest_open as timestamptz))
where organization_id = :organization_id
    and set_at = :set_at
    and looked_until < least(now() - interval '1 minute', cast(:oldest_open as timestamptz)) - cast(:lag as interval)
