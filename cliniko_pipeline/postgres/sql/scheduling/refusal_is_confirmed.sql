select
    scheduling.refused_credentials = :credentials
    and scheduling.refused_run_id <> :run_id
    and scheduling.refused_at <= now() - cast(:confirmed_after as interval)
from cliniko.scheduling as scheduling
where scheduling.organization_id = :organization_id
