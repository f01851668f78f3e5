-- Returns a time in Cliniko's format, 2014-08-30T18:00:00Z. Fractions of a second are shown if they are not zero.
create or replace function cliniko.instant(at timestamptz) returns text
language sql stable parallel safe
return rtrim(rtrim(to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'), '0'), '.') || 'Z';
