-- An owner of objects in the schema cliniko, if the database user lacks this owner's privileges. Migrations need them.
select quote_ident(current_user) as database_user, quote_ident(pg_get_userbyid(found.owner)) as owner
from (
    select nspowner as owner from pg_namespace where nspname = 'cliniko'
    union
    select relowner from pg_class where relnamespace = to_regnamespace('cliniko') and relkind in ('r', 'p')
    union
    select proowner from pg_proc where pronamespace = to_regnamespace('cliniko')
) as found
where not pg_has_role(found.owner, 'usage')
order by owner
limit 1
