-- How many of the resource's records are stored that were created before an instant, and how many were set aside of
-- which there is no row.
select
    (
        select count(*)
        from {table} as record
        where record.vanished_at is null and {condition} and record.created_at < :created_before
    ) as stored,
    (
        select count(*)
        from cliniko.rejected_records as rejected
        where rejected.resource = :resource
            and not exists (select from {table} as record where record.id = rejected.id and {condition})
    ) as set_aside
