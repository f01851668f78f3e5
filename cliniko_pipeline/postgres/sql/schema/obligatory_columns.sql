-- The columns that are not in :known, are not null, and have no default.
select quote_ident(attname)
from pg_attribute
where attrelid = to_regclass(:table)
    and attnum > 0
    and not attisdropped
    and attnotnull
    and not atthasdef
    and attidentity = ''
    and attname <> all(cast(:known as text[]))
order by attnum
