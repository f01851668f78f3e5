update cliniko.sync_runs set progress = cast(:progress as jsonb) where run_id = :run_id and status = 'running'
