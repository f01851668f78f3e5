update {table} as record
set vanished_at = now(), deleted_at = coalesce(record.deleted_at, now()), synced_at = now()
where record.vanished_at is null
    and {condition}
    and (cast(:horizon as timestamptz) is null or record.created_at < :horizon)
    and not exists (
        select from cliniko.crawled_ids as seen where seen.resource = :resource and seen.id = record.id
    )
