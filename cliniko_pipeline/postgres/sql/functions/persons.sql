-- Every patient of the organization and the person it is: a patient that was merged is the one it was merged into,
-- followed to the end of the chain. A chain may end at an id without a record. A loop ends at its lowest id.
create or replace function cliniko.persons()
returns table (patient_id text, person_id text, in_loop boolean)
language sql stable
as $function$
with recursive
patient as materialized (
    select id, merged_into_id from cliniko.patients
),
-- From the ends of the chains backwards, so that each patient is visited once.
settled (patient_id, person_id) as (
    (
        select id, id from patient where merged_into_id is null
        union all
        select merged.id, merged.merged_into_id
        from patient as merged
        where merged.merged_into_id is not null
            and not exists (select from patient as target where target.id = merged.merged_into_id)
    )
    union all
    select merged.id, settled.person_id
    from settled
    inner join patient as merged on merged.merged_into_id = settled.patient_id
),
-- What no end leads to stands in a loop, or on the way into one.
looped as materialized (
    select patient.id, patient.merged_into_id
    from patient
    where patient.merged_into_id is not null
        and not exists (select from settled where settled.patient_id = patient.id)
),
walk (patient_id, reached_id) as (
    select id, merged_into_id from looped
    union
    select walk.patient_id, looped.merged_into_id
    from walk
    inner join looped on looped.id = walk.reached_id
)
select settled.patient_id, settled.person_id, false
from settled
union all
select walk.patient_id, (array_agg(walk.reached_id order by length(walk.reached_id), walk.reached_id))[1], true
from walk
where exists (
    select from walk as around where around.patient_id = walk.reached_id and around.reached_id = walk.reached_id
)
group by walk.patient_id
$function$;
