select attname::text as name, format_type(atttypid, null) as type
from pg_attribute
where attrelid = to_regclass(quote_ident(:schema) || '.' || quote_ident(:name))
    and attnum > 0
    and not attisdropped
