-- Until the end of the transaction. The queries compute whole tables of an organization through many steps whose sizes
-- the planner cannot know (it guesses one row); a nested loop where it guessed wrong takes hours instead of seconds, a
-- hash join where one row was right a millisecond more.
select
    set_config('enable_nestloop', 'off', true),
    set_config('jit', 'off', true),
    -- In kB. PostgreSQL's default, 4 MB, has the sums and lists of a large clinic go by way of the disk.
    set_config('work_mem', greatest(pg_size_bytes(current_setting('work_mem')) / 1024, 16 * 1024)::text, true)
