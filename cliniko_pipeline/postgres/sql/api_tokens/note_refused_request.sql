insert into cliniko.api_refusals as noted (minute, reason, token_id, address, method, route, organization_id)
values (date_trunc('minute', now()), :reason, :token_id, :address, :method, :route, :organization_id)
on conflict (minute, reason, token_id, address, method, route, organization_id) do update
set attempts = noted.attempts + 1, last_at = now()
