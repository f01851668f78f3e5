-- The number of records that the full crawl should have seen, and the number that it missed. Records that were created
-- after the crawl began are left out.
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
