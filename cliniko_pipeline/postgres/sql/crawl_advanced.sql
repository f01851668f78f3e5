update cliniko.crawls
set records = records + :records, horizon = :horizon, next_page = :next_page, total_entries = :total_entries
where resource = :resource
