update cliniko.crawls
set is_full = false, reconciles = false, next_page = null, total_entries = null, needs_full = :reason
where resource = :resource and is_full and completed_at is null and cursor is not null
