-- The delays are 1, 2, 4 ... minutes, at most an hour.
update cliniko.notices
set
    attempts = attempts + 1,
    send_at = now() + least(interval '1 minute' * 2 ^ least(attempts, 10), interval '1 hour')
where id = :id
