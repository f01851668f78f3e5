-- Deletes rejections from before a full crawl. The crawl has rejected every still unreadable record again.
delete from cliniko.rejected_records as rejected
using cliniko.crawls as crawl
where rejected.resource = :resource
    and crawl.resource = rejected.resource
    and crawl.is_full
    and rejected.rejected_at < crawl.started_at
