insert into cliniko.crawls (organization_id, resource, started_at, is_full, reconciles)
values (current_setting('app.organization_id'), :resource, now(), :is_full, :reconciles)
on conflict (organization_id, resource) do update
set
    started_at = excluded.started_at,
    completed_at = null,
    records = 0,
    is_full = excluded.is_full,
    reconciles = excluded.reconciles,
    horizon = null,
    next_page = null,
    total_entries = null
