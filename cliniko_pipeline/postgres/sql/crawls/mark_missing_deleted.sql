-- Marks as deleted the records that count_missing.sql counts as missing, and returns their number. The resource decides
-- which one of the three updates changes rows.
with
missing as materialized (
    select record.id
    from cliniko.stored_records(:resource) as record
    where record.vanished_at is null
        and (cast(:next_cursor as timestamptz) is null or record.created_at < :next_cursor)
        and not exists (
            select from cliniko.crawled_ids as seen where seen.resource = :resource and seen.id = record.id
        )
),

patient as (
    update cliniko.patients as record
    set vanished_at = now(), deleted_at = coalesce(record.deleted_at, now()), synced_at = now()
    from missing
    where record.id = missing.id and :resource = 'patients'
    returning record.id
),

appointment as (
    update cliniko.appointments as record
    set vanished_at = now(), deleted_at = coalesce(record.deleted_at, now()), synced_at = now()
    from missing
    where record.id = missing.id and record.kind || '_appointments' = :resource
    returning record.id
),

attendee as (
    update cliniko.attendees as record
    set vanished_at = now(), deleted_at = coalesce(record.deleted_at, now()), synced_at = now()
    from missing
    where record.id = missing.id and :resource = 'attendees'
    returning record.id
)

select (select count(*) from patient) + (select count(*) from appointment) + (select count(*) from attendee)
