-- The first asset of a run makes the row; the others find it.
insert into cliniko.sync_runs as run (organization_id, run_id, planned, status, assets)
values (
    current_setting('app.organization_id'),
    :run_id,
    :planned,
    'running',
    jsonb_build_object(cast(:asset as text), jsonb_build_object('status', 'running', 'started_at', cliniko.instant(now())))
)
on conflict (organization_id, run_id) do update
set
    status = 'running',
    finished_at = null,
    error = null,
    assets = run.assets || excluded.assets
