-- Until the end of the transaction. The planner cannot estimate the sizes of the queries' steps, and guesses one row.
-- A nested loop on a wrong guess takes hours instead of seconds. A hash join on a right one costs a millisecond.
select
    set_config('enable_nestloop', 'off', true),
    set_config('jit', 'off', true),
    -- In kB. With PostgreSQL's default of 4 MB, a large clinic's aggregates go to disk.
    set_config('work_mem', greatest(pg_size_bytes(current_setting('work_mem')) / 1024, 16 * 1024)::text, true)
