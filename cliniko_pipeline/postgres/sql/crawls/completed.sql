-- A server that tells no time leaves the cursor where it is; a full crawl has none then, and the next is full again.
update cliniko.crawls
set
    completed_at = now(),
    next_page = null,
    total_entries = null,
    horizon = :horizon,
    is_partial = (is_partial and not is_full) or :is_partial,
    cursor = case
        when is_full or cast(:horizon as timestamptz) is not null
        then cast(:horizon as timestamptz) - cast(:overlap as interval)
        else cursor
    end,
    needs_full = case
        when is_full then null
        -- What changed meanwhile may carry times from before the cursor.
        when cast(:horizon as timestamptz) < cursor then 'Cliniko''s clock was set back'
        else needs_full
    end,
    doubtful_deletions = case when is_full then :doubtful_deletions else doubtful_deletions end
where resource = :resource
