-- The state of the context's organization, in one row.
with
last_run as (
    select * from cliniko.sync_runs order by started_at desc, run_id desc limit 1
),

last_success as (
    select max(finished_at) as finished_at
    from cliniko.sync_runs
    where status = 'succeeded'
        and planned @> cast(:sync_assets as text[])
),

mapping as (
    select
        count(*) filter (where mapping.status = 'matched') as matched,
        count(*) filter (where mapping.status = 'ambiguous') as ambiguous,
        count(*) filter (where mapping.status = 'unmatched') as unmatched
    from cliniko.contact_mapping as mapping
)

select
    last_run.run_id,
    last_run.status,
    last_run.started_at,
    last_run.finished_at,
    last_run.requests,
    last_run.seconds_waited,
    last_run.error,
    last_success.finished_at as last_success_at,
    (select count(*) from cliniko.patients where vanished_at is null) as patients,
    (select count(*) from cliniko.appointments where vanished_at is null) as appointments,
    (select count(*) from cliniko.attendees where vanished_at is null) as attendees,
    mapping.matched,
    mapping.ambiguous,
    mapping.unmatched,
    (select count(*) from public.active_patients) as active_patients,
    (select count(*) from cliniko.rejected_records) as rejected_records,
    (select count(*) from cliniko.rejected_records where id is null) as unidentified_records,
    (select coalesce(sum(doubtful_deletions), 0)::bigint from cliniko.crawls) as doubtful_deletions,
    (
        select array_agg(resource || ': ' || needs_full order by resource) from cliniko.crawls where needs_full is not null
    ) as full_readings_due,
    (
        select array_agg(resource || ' ' || refused order by resource, refused)
        from cliniko.crawls
        cross join unnest(refused_fields) as refused
    ) as refused_fields,
    (select count(*) from cliniko.persons() where in_loop) as patients_in_merge_loops
from mapping
cross join last_success
left join last_run on true
