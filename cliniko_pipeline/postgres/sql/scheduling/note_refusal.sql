-- The time of the first refusal is kept until a sync succeeds or other credentials are stored.
insert into cliniko.scheduling as scheduling (organization_id, refused_at, refused_run_id, refused_credentials)
select credentials.organization_id::text, now(), :run_id, :credentials
from public.api_credentials as credentials
where credentials.organization_id::text = :organization_id
    and credentials.service_name = :service
    and md5(credentials.credentials_encrypted::text) = :credentials
on conflict (organization_id) do update
set
    refused_at = excluded.refused_at,
    refused_run_id = excluded.refused_run_id,
    refused_credentials = excluded.refused_credentials
where scheduling.refused_credentials is distinct from excluded.refused_credentials
    -- The stored time is in the future if the clock was set back.
    or scheduling.refused_at > excluded.refused_at
