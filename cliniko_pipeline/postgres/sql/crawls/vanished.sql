-- How many records the full crawl that just ended should have seen, and how many of them it did not.
-- What was created when it began, or later, was none of its business.
select
    count(*) as known,
    count(*) filter (
        where not exists (
            select from cliniko.crawled_ids as seen where seen.resource = :resource and seen.id = record.id
        )
    ) as vanished
from {table} as record
where record.vanished_at is null
    and {condition}
    and (cast(:horizon as timestamptz) is null or record.created_at < :horizon)
