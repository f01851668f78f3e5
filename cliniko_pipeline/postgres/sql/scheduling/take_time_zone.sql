insert into cliniko.scheduling as scheduling (organization_id, time_zone)
values (:organization_id, :time_zone)
on conflict (organization_id) do update
-- A full_sync_at without a time zone is in UTC.
set time_zone = coalesce(scheduling.time_zone, case when scheduling.full_sync_at is null then excluded.time_zone end)
returning time_zone
