update cliniko.crawls
set completed_at = now(), records = :records
where resource = :resource
