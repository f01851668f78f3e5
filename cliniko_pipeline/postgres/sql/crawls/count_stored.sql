-- The number of a resource's stored records that were created before :created_before, and the number of its rejected
-- records of which no version is stored.
select
    (
        select count(*)
        from cliniko.stored_records(:resource) as record
        where record.vanished_at is null and record.created_at < :created_before
    ) as stored,
    (
        select count(*)
        from cliniko.rejected_records as rejected
        where rejected.resource = :resource
            and not exists (select from cliniko.stored_records(:resource) as record where record.id = rejected.id)
    ) as rejected
