-- Deletes rejections of records that the crawl has read again. Records without an id cannot be identified, so rejections
-- with the same reasons from earlier crawls are deleted.
delete from cliniko.rejected_records as rejected
where rejected.resource = :resource
    and (
        rejected.id = any(cast(:ids as text []))
        or (
            rejected.id is null
            and rejected.reason = any(cast(:reasons as text []))
            and rejected.rejected_at < (select started_at from cliniko.crawls where resource = :resource)
        )
    )
