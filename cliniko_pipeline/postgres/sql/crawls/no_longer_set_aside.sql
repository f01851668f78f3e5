-- What is known by its id was read again. Of what is not, a crawl sets its own aside, beside none of an earlier one's.
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
