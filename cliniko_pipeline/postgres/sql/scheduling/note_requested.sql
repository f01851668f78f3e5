insert into cliniko.scheduling as scheduling (organization_id, requested_at, full_requested_at)
values (:organization_id, :at, case when :is_full then cast(:at as timestamptz) end)
on conflict (organization_id) do update
set
    requested_at = excluded.requested_at,
    retry_at = null,
    full_requested_at = coalesce(excluded.full_requested_at, scheduling.full_requested_at)
