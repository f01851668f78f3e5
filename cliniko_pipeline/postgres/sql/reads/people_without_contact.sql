select patient_id, status, candidate_count
from cliniko.contact_mapping
where organization_id = current_setting('app.organization_id')
    and status = :status
    and (
        cast(:after as text) is null
        or (length(patient_id), patient_id) > (length(cast(:after as text)), cast(:after as text) collate "C")
    )
order by length(patient_id), patient_id
limit :limit
