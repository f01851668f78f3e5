-- The stored matches of current people, and how many of them the new mapping in pg_temp.staging loses. Archived and
-- deleted people are left out, because they are no longer matched by e-mail or name.
with
compared as (
    select
        staging.contact_id is null as is_lost,
        patient.archived_at is null and patient.deleted_at is null as is_current
    from cliniko.contact_mapping as stored
    inner join pg_temp.staging as staging on staging.patient_id = stored.patient_id
    inner join cliniko.patients as patient on patient.id = stored.patient_id
    where stored.contact_id is not null
)

select
    count(*) filter (where is_current) as matched,
    count(*) filter (where is_current and is_lost) as lost,
    count(*) > 0 and not exists (select from cliniko.organization_contacts()) as has_lost_all_contacts
from compared
