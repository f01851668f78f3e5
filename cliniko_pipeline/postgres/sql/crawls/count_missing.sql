-- The records that the full crawl should have seen, and those of them that it did not see. Records created after its
-- beginning do not count.
select
    count(*) as known,
    count(*) filter (
        where not exists (
            select from cliniko.crawled_ids as seen where seen.resource = :resource and seen.id = record.id
        )
    ) as missing
from cliniko.stored_records(:resource) as record
where record.vanished_at is null
    and (cast(:next_cursor as timestamptz) is null or record.created_at < :next_cursor)
