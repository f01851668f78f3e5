-- Whether row-level security holds the database user at all.
select rolsuper, rolbypassrls, quote_ident(rolname) as name
from pg_roles
where rolname = session_user
