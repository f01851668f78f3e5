update cliniko.crawls
set
    records = records + :records,
    horizon = :next_cursor,
    next_page = :next_page,
    total_entries = :total_entries,
    refused_fields = cast(:refused_fields as text [])
where resource = :resource
returning exists (select from cliniko.rejected_records as rejected where rejected.resource = crawls.resource)
