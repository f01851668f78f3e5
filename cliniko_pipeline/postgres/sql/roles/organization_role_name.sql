-- Roles belong to the server. The number of the database in the name gives each database one of its own: whoever may
-- enter the organizations of one, as the owner of a copy may, enters none of another.
select 'cliniko_organization_' || oid
from pg_database
where datname = current_database()
