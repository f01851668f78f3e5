-- Deletes rejections of records that the crawl has read again. A rejected record without an id cannot be recognized, so
-- all rejections of such records with the same reason from earlier crawls are deleted.
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
