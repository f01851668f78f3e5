update cliniko.sync_runs as run
set
    assets = run.assets || jsonb_build_object(
        cast(:asset as text),
        coalesce(run.assets -> :asset, '{}') || cast(:result as jsonb)
            || jsonb_strip_nulls(
                jsonb_build_object('finished_at', cliniko.instant(now()), 'error', cast(:error as text))
            )
    ),
    progress = null,
    requests = run.requests + :requests,
    seconds_waited = run.seconds_waited + :seconds_waited,
    status = case
        -- One failed asset makes the run fail, even if independent assets continue.
        when cast(:error as text) is not null or run.status = 'failed' then 'failed'
        -- The run has succeeded when all planned assets have succeeded.
        when (
            select bool_and(planned = :asset or coalesce(run.assets -> planned ->> 'status', '') = 'succeeded')
            from unnest(run.planned) as planned
        ) then 'succeeded'
        else run.status
    end,
    finished_at = case
        when cast(:error as text) is not null
            or run.status = 'failed'
            or (
                select bool_and(planned = :asset or coalesce(run.assets -> planned ->> 'status', '') = 'succeeded')
                from unnest(run.planned) as planned
            )
        then now()
    end,
    error = case
        when run.error is null or run.error = cast(:error as text) then cast(:error as text)
        else concat_ws('; ', run.error, cast(:error as text))
    end
where run.run_id = :run_id
returning run.started_at, run.status
