-- Who belongs into active_patients, by the attendances that are kept. While nothing else has changed, only time has.
--
-- The parameters are those of recount_active_patients.sql.
with
judged as materialized (
    select coalesce(max(search_date_to) at time zone 'UTC', cast(:as_of as timestamptz)) as as_of
    from public.active_patients
),

active as (
    select distinct kept.contact_id
    from cliniko.current_attendances as kept
    cross join judged
    where kept.kind <> 'earlier'
        and kept.starts_at >= judged.as_of - :activity_window
        and kept.starts_at <= judged.as_of
        and (:count_no_shows or not kept.did_not_arrive)
)

select
    (select count(*) from public.active_patients) as stored,
    (
        select count(*) from active
        where active.contact_id not in (select stored.contact_id from public.active_patients as stored)
    ) as missing,
    (
        select count(*)
        from public.active_patients as stored
        where stored.contact_id not in (select active.contact_id from active)
    ) as surplus,
    (select count(*) - count(distinct stored.contact_id) from public.active_patients as stored) as twice
