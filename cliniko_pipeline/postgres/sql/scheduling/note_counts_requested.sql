insert into cliniko.scheduling as scheduling (organization_id, counts_requested_at)
values (:organization_id, :at)
on conflict (organization_id) do update
set counts_requested_at = excluded.counts_requested_at
