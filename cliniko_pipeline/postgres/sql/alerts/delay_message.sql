-- 1, 2, 4 ... minutes, an hour at most.
update cliniko.notices
set
    attempts = attempts + 1,
    send_at = now() + least(interval '1 minute' * 2 ^ least(attempts, 10), interval '1 hour')
where id = :id
