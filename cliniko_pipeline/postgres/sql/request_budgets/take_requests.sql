-- Takes requests from the budget of an API key, or returns the seconds to wait. The budget allows `allowed` requests in
-- any window of `window_seconds`.
--
-- A request is counted until `window_seconds` after its response. The caller reports how many seconds ago responses
-- came, so only the database server's clock matters. Without a report, a request is counted as if its response took
-- `longest_answer_seconds`.
--
-- A lock on the key's row, until the end of the transaction, makes concurrent callers take turns.
create or replace function cliniko.take_requests(
    digest text,
    wanted integer,
    allowed integer,
    window_seconds double precision,
    longest_answer_seconds double precision,
    longest_block_seconds double precision,
    crowded_seconds double precision,
    answered_tickets bigint[],
    answered_seconds_ago double precision[]
)
returns table (ticket bigint, wait_seconds double precision, requests_left integer, is_crowded boolean)
language plpgsql
as $function$
declare
    budget cliniko.request_budgets;
    moment timestamptz;
    counting integer;
    full_window constant interval := make_interval(secs => window_seconds);
    unanswered constant interval := make_interval(secs => window_seconds + longest_answer_seconds);
begin
    insert into cliniko.request_budgets (key_digest) values (digest) on conflict do nothing;
    select * into budget from cliniko.request_budgets where key_digest = digest for update;
    moment := clock_timestamp();
    -- After the clock was set back, the stored time may be far in the future. This limits the wait.
    budget.blocked_until := least(budget.blocked_until, moment + make_interval(secs => longest_block_seconds));

    select
        coalesce(array_agg(taken.ticket order by taken.ticket), '{}'),
        coalesce(array_agg(taken.requests order by taken.ticket), '{}'),
        coalesce(array_agg(taken.until order by taken.ticket), '{}'),
        coalesce(sum(taken.requests), 0)
    into budget.tickets, budget.requests, budget.count_until, counting
    from (
        select
            entry.ticket,
            entry.requests,
            -- After the clock was set back, this limits how long the request is counted.
            least(
                case
                    when answer.ticket is null then entry.until
                    else moment - make_interval(secs => greatest(answer.ago, 0)) + full_window
                end,
                moment + unanswered
            ) as until
        from unnest(budget.tickets, budget.requests, budget.count_until) as entry (ticket, requests, until)
        left join unnest(answered_tickets, answered_seconds_ago) as answer (ticket, ago) on answer.ticket = entry.ticket
    ) as taken
    where taken.until > moment;

    wait_seconds := 0;
    if budget.blocked_until > moment then
        wait_seconds := extract(epoch from budget.blocked_until - moment);
    elsif wanted > 0 and counting + wanted > allowed then
        -- The first instant at which enough requests have left the window.
        select extract(epoch from min(freed.until) - moment)
        into wait_seconds
        from (
            select entry.until, sum(entry.requests) over (order by entry.until, entry.ticket) as requests
            from unnest(budget.tickets, budget.requests, budget.count_until) as entry (ticket, requests, until)
        ) as freed
        where counting - freed.requests + wanted <= allowed;
    elsif wanted > 0 then
        budget.last_ticket := budget.last_ticket + 1;
        ticket := budget.last_ticket;
        counting := counting + wanted;
        budget.tickets := budget.tickets || ticket;
        budget.requests := budget.requests || wanted;
        budget.count_until := budget.count_until || moment + unanswered;
    end if;
    is_crowded := moment < budget.blocked_until + make_interval(secs => crowded_seconds);
    requests_left := case when budget.blocked_until > moment then 0 else greatest(allowed - counting, 0) end;

    update cliniko.request_budgets
    set
        blocked_until = budget.blocked_until,
        last_ticket = budget.last_ticket,
        tickets = budget.tickets,
        requests = budget.requests,
        count_until = budget.count_until
    where key_digest = digest;
    return next;
end
$function$;
