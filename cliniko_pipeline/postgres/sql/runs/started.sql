-- The run's first asset inserts the row, and the other assets update it. A retried asset removes only its own error.
insert into cliniko.sync_runs as run (organization_id, run_id, planned, is_full, status, assets)
values (
    current_setting('app.organization_id'),
    :run_id,
    :planned,
    :is_full,
    'running',
    jsonb_build_object(cast(:asset as text), jsonb_build_object('status', 'running', 'started_at', cliniko.instant(now())))
)
on conflict (organization_id, run_id) do update
set
    status = case
        when exists (
            select from jsonb_each(run.assets - cast(:asset as text)) as other where other.value ->> 'status' = 'failed'
        ) then 'failed'
        else 'running'
    end,
    finished_at = null,
    progress = null,
    error = (
        select string_agg(distinct other.value ->> 'error', '; ')
        from jsonb_each(run.assets - cast(:asset as text)) as other
        where other.value ->> 'status' = 'failed'
    ),
    assets = run.assets || excluded.assets
