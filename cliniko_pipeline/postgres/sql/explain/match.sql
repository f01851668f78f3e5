-- The match of a person, computed from the stored data by contact_mapping.sql, which is inserted here.
--
-- The rows are the person, every contact with the person's id, e-mail or name, and every other person with the same
-- e-mail or name. E-mails and names themselves are not selected.
with
mapping as materialized ({contact_mapping}),

identity as materialized (
    select patient_id, person_id from cliniko.persons()
),

person as materialized (
    select
        patient.id,
        cliniko.name_key(concat_ws(' ', patient.first_name, patient.last_name)) as name_key,
        cliniko.email_key(patient.email) as email_key,
        patient.archived_at is null and patient.deleted_at is null as is_current,
        mapping.status,
        mapping.method,
        mapping.contact_id,
        mapping.candidate_count
    from cliniko.patients as patient
    inner join mapping on mapping.patient_id = patient.id
),

asked as materialized (
    select * from person where id = :person_id
),

contact as materialized (
    select
        contact.id,
        cliniko.name_key(contact.name) as name_key,
        cliniko.email_key(contact.email) as email_key,
        contact.cliniko_patient_id as named_patient_id,
        named.id as named_person_id
    from cliniko.organization_contacts() as contact
    left join identity on identity.patient_id = contact.cliniko_patient_id
    left join person as named on named.id = identity.person_id
)

select *
from (
    select
        'person' as side,
        asked.id,
        asked.is_current,
        asked.email_key is not null as has_email,
        asked.name_key is not null as has_name,
        asked.status,
        asked.method,
        asked.contact_id,
        asked.candidate_count,
        cast(null as text) as named_patient_id,
        cast(null as text) as named_person_id,
        cast(null as text) as matched_person_id
    from asked
    union all
    select
        'patient',
        person.id,
        person.is_current,
        coalesce(person.email_key = asked.email_key, false),
        coalesce(person.name_key = asked.name_key, false),
        person.status,
        person.method,
        person.contact_id,
        person.candidate_count,
        null,
        null,
        null
    from person
    inner join asked on asked.id <> person.id
    where person.email_key = asked.email_key or person.name_key = asked.name_key
    union all
    select
        'contact',
        cast(contact.id as text),
        null,
        coalesce(contact.email_key = asked.email_key, false),
        coalesce(contact.name_key = asked.name_key, false),
        mapping.status,
        mapping.method,
        null,
        null,
        case when contact.named_person_id is not null then contact.named_patient_id end,
        contact.named_person_id,
        mapping.patient_id
    from contact
    inner join asked on true
    left join mapping on mapping.contact_id = contact.id
    where contact.named_person_id = asked.id or contact.email_key = asked.email_key or contact.name_key = asked.name_key
) as found
order by side, length(id), id
