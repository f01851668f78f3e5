select
    resource,
    completed_at is not null as is_complete,
    is_full,
    reconciles,
    horizon as next_cursor,
    next_page,
    total_entries,
    records,
    is_partial,
    cursor,
    needs_full,
    doubtful_deletions,
    refused_fields
from cliniko.crawls
