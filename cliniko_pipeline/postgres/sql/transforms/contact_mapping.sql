-- The organization's people, each with its contact if the match is certain.
--
-- Pass 1 matches by the patient id that a contact has, pass 2 by e-mail, pass 3 by name. A pass settles some people as
-- matched or ambiguous, and leaves the others to the next pass.
--
-- Names decide where several contacts lead to one person, or where several people or contacts share an e-mail. A pair
-- then matches only if its names are equal and nobody else in its group, the people and contacts with the same id or
-- e-mail, has that name. If a contact of the group stays unpaired, each unpaired person of the group is ambiguous.
-- Otherwise such a person goes on to the next pass.
--
-- Uncertain pairs are not matched, because a wrong pair would show one person's appointments as another's.
with
identity as materialized (
    select patient_id, person_id from cliniko.persons()
),

person as materialized (
    select
        patient.id,
        cliniko.name_key(concat_ws(' ', patient.first_name, patient.last_name)) as name_key,
        cliniko.email_key(patient.email) as email_key,
        patient.archived_at is null and patient.deleted_at is null as is_current
    from cliniko.patients as patient
    inner join identity on identity.patient_id = patient.id and identity.person_id = patient.id
),

-- linked_person_id: the person to whom the contact's cliniko_patient_id leads, directly or through merges. It is null
-- if no patient with this id is stored, or if the merges end at an unknown id.
contact as materialized (
    select
        contact.id,
        cliniko.name_key(contact.name) as name_key,
        cliniko.email_key(contact.email) as email_key,
        person.id as linked_person_id
    from cliniko.organization_contacts() as contact
    left join identity on identity.patient_id = contact.cliniko_patient_id
    left join person on person.id = identity.person_id
),

-- Pass 1: the contact has the id of the patient, or of a patient merged into it. ------------------------------------
linked as (
    select linked_person_id as person_id, count(*) as contacts, (array_agg(id))[1] as contact_id
    from contact
    where linked_person_id is not null
    group by linked_person_id
),

linked_by_name as (
    select person.id as person_id, (array_agg(contact.id))[1] as contact_id
    from person
    inner join contact on contact.linked_person_id = person.id and contact.name_key = person.name_key
    group by person.id
    having count(*) = 1
),

by_id as materialized (
    select
        linked.person_id,
        case when linked.contacts = 1 then linked.contact_id else linked_by_name.contact_id end as contact_id,
        linked.contacts as candidates
    from linked
    left join linked_by_name on linked_by_name.person_id = linked.person_id
),

-- Pass 2: same e-mail. ----------------------------------------------------------------------------------------------
-- Pass 1 settles every person that is linked to a contact. These people and contacts take no part in the later passes.
-- Archived and deleted people take part in pass 1 only.
free_person as materialized (
    select person.*
    from person
    where person.is_current and not exists (select from by_id where by_id.person_id = person.id)
),

free_contact as materialized (
    select * from contact where linked_person_id is null
),

-- People and contacts are grouped by e-mail before the join, because thousands of them may share an address.
email_group as materialized (
    select email_key, persons, person_id, contacts, contact_id
    from (
        select email_key, count(*) as persons, (array_agg(id))[1] as person_id from free_person group by email_key
    ) as person_side
    inner join (
        select email_key, count(*) as contacts, (array_agg(id))[1] as contact_id from free_contact group by email_key
    ) as contact_side using (email_key)
),

email_name_pair as (
    select email_key, person_id, contact_id
    from (
        select email_key, name_key, (array_agg(id))[1] as person_id
        from free_person
        where email_key is not null and name_key is not null
        group by email_key, name_key
        having count(*) = 1
    ) as person_side
    inner join (
        select email_key, name_key, (array_agg(id))[1] as contact_id
        from free_contact
        where email_key is not null and name_key is not null
        group by email_key, name_key
        having count(*) = 1
    ) as contact_side using (email_key, name_key)
),

email_pair as materialized (
    select person_id, contact_id, email_key
    from email_group
    where persons = 1 and contacts = 1
    union all
    select pair.person_id, pair.contact_id, pair.email_key
    from email_name_pair as pair
    inner join email_group on email_group.email_key = pair.email_key
    where email_group.persons > 1 or email_group.contacts > 1
),

email_ambiguous as materialized (
    select person.id as person_id, email_group.contacts - coalesce(paired.contacts, 0) as candidates
    from email_group
    inner join free_person as person on person.email_key = email_group.email_key
    left join (select email_key, count(*) as contacts from email_pair group by email_key) as paired
        on paired.email_key = email_group.email_key
    where email_group.contacts > coalesce(paired.contacts, 0)
        and not exists (select from email_pair where email_pair.person_id = person.id)
),

-- Pass 3: same name. ------------------------------------------------------------------------------------------------
name_person as materialized (
    select person.id, person.name_key
    from free_person as person
    where person.name_key is not null
        and not exists (select from email_pair where email_pair.person_id = person.id)
        and not exists (select from email_ambiguous where email_ambiguous.person_id = person.id)
),

name_contact as materialized (
    select contact.id, contact.name_key
    from free_contact as contact
    where contact.name_key is not null
        and not exists (select from email_pair where email_pair.contact_id = contact.id)
),

name_group as (
    select name_key, persons, contacts, contact_id
    from (select name_key, count(*) as persons from name_person group by name_key) as person_side
    inner join (
        select name_key, count(*) as contacts, (array_agg(id))[1] as contact_id from name_contact group by name_key
    ) as contact_side using (name_key)
),

by_name as (
    select
        person.id as person_id,
        case when name_group.persons = 1 and name_group.contacts = 1 then name_group.contact_id end as contact_id,
        name_group.contacts as candidates
    from name_group
    inner join name_person as person on person.name_key = name_group.name_key
),

decided as (
    select person_id, contact_id, 'cliniko_patient_id' as method, candidates from by_id
    union all
    select person_id, contact_id, 'email', null from email_pair
    union all
    select person_id, null, 'email', candidates from email_ambiguous
    union all
    select person_id, contact_id, 'name', candidates from by_name
)

select
    person.id as patient_id,
    decided.contact_id,
    case
        when decided.contact_id is not null then 'matched'
        when decided.person_id is not null then 'ambiguous'
        else 'unmatched'
    end as status,
    decided.method,
    case when decided.contact_id is null then decided.candidates end as candidate_count
from person
left join decided on decided.person_id = person.id
