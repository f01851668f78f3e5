insert into cliniko.crawls as crawl (organization_id, resource, started_at)
values (current_setting('app.organization_id'), :resource, now())
on conflict (organization_id, resource) do update
set started_at = excluded.started_at, completed_at = null, records = 0
