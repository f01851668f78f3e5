select instigator_body::jsonb #>> '{origin,job_name}' as name
from dagster.instigators
where status = 'STOPPED' and instigator_body::jsonb #>> '{origin,external_repository_origin,repository_location_origin,location_name}' = :location
order by name
