-- Whether the current crawl has rejected a record without a readable id.
select
    exists (
        select
        from cliniko.rejected_records as rejected
        inner join cliniko.crawls as crawl on rejected.resource = crawl.resource
        where rejected.resource = :resource and rejected.id is null and rejected.rejected_at >= crawl.started_at
    )
