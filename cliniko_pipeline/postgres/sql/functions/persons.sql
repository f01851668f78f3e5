-- Returns every patient of the organization with its person, which is the last patient in the chain of merges. A chain
-- may end at an id without a record. The lowest id in a loop is the person of all patients that lead to the loop.
create or replace function cliniko.persons()
returns table (patient_id text, person_id text, in_loop boolean)
language plpgsql stable
rows 10000
as $function$
declare
    -- All arrays have the same index, the number of a merged patient. A target is the patient that it was merged into;
    -- `targets` has the target's number, if the target was merged, too. `persons` and `loops` are the results.
    ids text[];
    target_ids text[];
    targets integer[];
    persons text[];
    loops boolean[];
    walks integer[];
    here integer;
    last integer;
    person text;
    is_loop boolean;
begin
    with merged as (
        select id, merged_into_id, cast(row_number() over () as integer) as number
        from cliniko.patients
        where merged_into_id is not null
    )
    select
        array_agg(merged.id order by merged.number),
        array_agg(merged.merged_into_id order by merged.number),
        array_agg(target.number order by merged.number),
        array_agg(null::text),
        array_agg(false),
        array_agg(0)
    into ids, target_ids, targets, persons, loops, walks
    from merged
    left join merged as target on target.id = merged.merged_into_id;

    -- A walk along a chain stops at a patient with a known person, so the time is linear. `walks` marks the patients of
    -- the current walk, so that a loop is noticed.
    for start in 1..coalesce(cardinality(ids), 0) loop
        here := start;
        while here is not null and persons[here] is null and walks[here] <> start loop
            walks[here] := start;
            last := here;
            here := targets[here];
        end loop;
        if here is null then
            person := target_ids[last];
            is_loop := false;
        elsif persons[here] is not null then
            person := persons[here];
            is_loop := loops[here];
        else
            person := ids[here];
            is_loop := true;
            last := targets[here];
            while last <> here loop
                if (length(ids[last]), ids[last] collate "C") < (length(person), person collate "C") then
                    person := ids[last];
                end if;
                last := targets[last];
            end loop;
        end if;
        here := start;
        while here is not null and persons[here] is null loop
            persons[here] := person;
            loops[here] := is_loop;
            here := targets[here];
        end loop;
    end loop;

    return query
    select patient.id, coalesce(settled.person_id, patient.id), coalesce(settled.in_loop, false)
    from cliniko.patients as patient
    left join unnest(ids, persons, loops) as settled (id, person_id, in_loop) on settled.id = patient.id;
end
$function$;
