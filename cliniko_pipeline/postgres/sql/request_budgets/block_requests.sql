insert into cliniko.request_budgets as budget (key_digest, blocked_until)
values (:key_digest, clock_timestamp() + make_interval(secs => :seconds))
on conflict (key_digest) do update
set blocked_until = greatest(budget.blocked_until, excluded.blocked_until)
