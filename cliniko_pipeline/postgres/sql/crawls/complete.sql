-- :next_cursor is null if Cliniko sent no time. An incremental crawl then keeps the stored cursor. A full crawl then
-- deletes the stored cursor, so that the next crawl is full again.
update cliniko.crawls
set
    completed_at = now(),
    next_page = null,
    total_entries = null,
    horizon = :next_cursor,
    is_partial = (is_partial and not is_full) or :is_partial,
    cursor = case
        when is_full or cast(:next_cursor as timestamptz) is not null
        then cast(:next_cursor as timestamptz) - cast(:overlap as interval)
        else cursor
    end,
    needs_full = case
        when is_full then null
        -- An incremental crawl would miss changes whose times are before the cursor.
        when cast(:next_cursor as timestamptz) < cursor then 'Cliniko''s clock was set back'
        else needs_full
    end,
    doubtful_deletions = case when is_full then :doubtful_deletions else doubtful_deletions end
where resource = :resource
