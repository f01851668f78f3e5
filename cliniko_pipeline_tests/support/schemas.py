"""Databases before a migration: the application's own table, and all objects of a database."""

import sqlalchemy as sa

from cliniko_pipeline.postgres.engine import Database

# The statement of the application.
ACTIVE_PATIENTS_TABLE = """
create table public.active_patients (
  id bigserial not null, contact_id uuid not null, recent_appointment_count integer not null,
  upcoming_appointment_count integer not null, total_appointment_count integer not null,
  last_appointment_date timestamp, recent_appointments jsonb, upcoming_appointments jsonb,
  search_date_from timestamp, search_date_to timestamp, organization_id text, created_at timestamp,
  updated_at timestamp
)
"""
OBJECTS = """
select concat(nspname, '.', relname, ' ', relkind, relrowsecurity, relforcerowsecurity, relacl)
from pg_class inner join pg_namespace as schema on schema.oid = relnamespace
where nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
union all
select nspname from pg_namespace where nspname !~ '^pg_' and nspname not in ('information_schema', 'public')
union all
select nspname || '.' || concat(proname, proacl, prosrc, proowner)
from pg_proc inner join pg_namespace as schema on schema.oid = pronamespace
where nspname in ('cliniko', 'public')
union all
select polname from pg_policy
order by 1
"""


def schema_objects(database: Database) -> list[str]:
    """Return the relations, schemas, functions and policies of the database, with their privileges."""
    with database.operator() as connection:
        return list(connection.execute(sa.text(OBJECTS)).scalars())


def has_pipeline_schema(database: Database) -> bool:
    """Return whether anything of the pipeline is in the database."""
    return any(name.startswith("cliniko") for name in schema_objects(database))


def assert_one_line(error: Exception, *parts: str) -> None:
    """Fail unless the message is one line with all the parts."""
    text = str(error)
    assert "\n" not in text
    assert all(part in text for part in parts), text
