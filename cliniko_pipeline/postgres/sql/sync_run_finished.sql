update cliniko.sync_runs as run
set
    assets = run.assets || jsonb_build_object(
        cast(:asset as text),
        coalesce(run.assets -> :asset, '{}') || cast(:result as jsonb)
            || jsonb_build_object('finished_at', cliniko.instant(now()))
    ),
    requests = run.requests + :requests,
    seconds_waited = run.seconds_waited + :seconds_waited,
    status = case
        when cast(:error as text) is not null then 'failed'
        -- The run has succeeded when the last of what it planned has.
        when (
            select bool_and(planned = :asset or run.assets -> planned ->> 'status' = 'succeeded')
            from unnest(run.planned) as planned
        ) then 'succeeded'
        else run.status
    end,
    finished_at = case
        when cast(:error as text) is not null
            or (
                select bool_and(planned = :asset or run.assets -> planned ->> 'status' = 'succeeded')
                from unnest(run.planned) as planned
            )
        then now()
    end,
    error = cast(:error as text)
where run.run_id = :run_id
