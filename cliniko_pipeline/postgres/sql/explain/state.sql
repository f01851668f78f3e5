-- The age and completeness of the organization's stored data, in one row.
with
last_run as (
    select status, started_at, error from cliniko.sync_runs order by started_at desc, run_id desc limit 1
),

last_computed as (
    select max(started_at) as started_at
    from cliniko.sync_runs
    where status = 'succeeded' and planned @> array['active_patients']
)

select
    now() as now,
    (select max(search_date_to) at time zone 'UTC' from public.active_patients) as judged_at,
    last_computed.started_at as last_computed_at,
    last_run.status as last_run_status,
    last_run.started_at as last_run_started_at,
    last_run.error as last_run_error,
    array(select resource from cliniko.crawls where completed_at is not null order by resource) as resources_complete,
    (select count(*) from cliniko.rejected_records) as rejected_records,
    (select cast(coalesce(sum(doubtful_deletions), 0) as bigint) from cliniko.crawls) as doubtful_deletions
from last_computed
left join last_run on true
