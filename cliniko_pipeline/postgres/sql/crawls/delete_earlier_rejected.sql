-- A complete full crawl has rejected again every record that still cannot be understood.
delete from cliniko.rejected_records as rejected
using cliniko.crawls as crawl
where rejected.resource = :resource
    and crawl.resource = rejected.resource
    and crawl.is_full
    and rejected.rejected_at < crawl.started_at
