-- The name contains the database's oid, because roles belong to the server and each database needs its own role.
-- Otherwise the owner of a copy could read the organizations of the original database.
select 'cliniko_organization_' || oid
from pg_database
where datname = current_database()
