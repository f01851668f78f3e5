-- The columns besides those known that must have a value and have none by themselves.
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
