-- Roles belong to the server. The number of the database in the name gives each database a role of its own: the owner
-- of a copy cannot read the organizations of the original.
select 'cliniko_organization_' || oid
from pg_database
where datname = current_database()
