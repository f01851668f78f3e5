-- The crawl has read the records with these ids again. Records without an id replace those of earlier crawls.
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
