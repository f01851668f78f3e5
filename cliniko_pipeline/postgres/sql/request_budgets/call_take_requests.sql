select taken.ticket, taken.wait_seconds, taken.requests_left, taken.is_crowded
from cliniko.take_requests(
    :key_digest,
    :wanted,
    :allowed,
    :window_seconds,
    :longest_answer_seconds,
    :longest_block_seconds,
    :crowded_seconds,
    cast(:answered_tickets as bigint[]),
    cast(:answered_seconds_ago as double precision[])
) as taken
