-- A new target gets the syncs that end from now on, even if they started up to :longest_run ago.
insert into cliniko.webhook_targets (organization_id, encrypted, looked_until)
values (:organization_id, :encrypted, now() - cast(:longest_run as interval))
on conflict (organization_id) do update
set
    encrypted = excluded.encrypted,
    set_at = now(),
    looked_until = excluded.looked_until,
    disabled_at = null,
    disabled_reason = null
