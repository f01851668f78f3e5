-- Archived and deleted people are matched by id only, so most of them have no contact in an old clinic. The share of
-- unmatched people is therefore computed for current people.
select
    count(*) filter (where mapping.status = 'matched') as matched,
    count(*) filter (where mapping.status = 'ambiguous') as ambiguous,
    count(*) filter (where mapping.status = 'unmatched') as unmatched,
    count(patient.id) as current_people,
    count(patient.id) filter (where mapping.status = 'unmatched') as current_unmatched,
    count(mapping.contact_id) - count(distinct mapping.contact_id) as contacts_used_twice
from cliniko.contact_mapping as mapping
left join cliniko.patients as patient
    on patient.id = mapping.patient_id and patient.archived_at is null and patient.deleted_at is null
