insert into cliniko.scheduling as scheduling (organization_id, is_on, sync_every_minutes, full_sync_at, time_zone)
values (:organization_id, :is_on, :sync_every_minutes, :full_sync_at, :time_zone)
on conflict (organization_id) do update
set
    is_on = coalesce(excluded.is_on, scheduling.is_on),
    -- The freshness check measures the age from when the schedule was switched on.
    known_since = case when excluded.is_on then now() else scheduling.known_since end,
    sync_every_minutes = coalesce(excluded.sync_every_minutes, scheduling.sync_every_minutes),
    full_sync_at = coalesce(excluded.full_sync_at, scheduling.full_sync_at),
    time_zone = coalesce(excluded.time_zone, scheduling.time_zone)
