"""Objects and the application's tables of a database, for comparisons before and after a migration."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline_tests.support.tenants import row_versions

# The statement with which the application creates the table.
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


# The definitions of those tables of the application that the pipeline must not change.
APPLICATION_TABLES = """
select oid::regclass, relowner::regrole, relacl, relrowsecurity, relforcerowsecurity,
    (select array_agg(pg_get_constraintdef(oid) order by oid) from pg_constraint where conrelid = pg_class.oid),
    (select array_agg(pg_get_indexdef(indexrelid) order by indexrelid) from pg_index where indrelid = pg_class.oid),
    (select array_agg(pg_get_triggerdef(oid) order by oid) from pg_trigger where tgrelid = pg_class.oid),
    (select array_agg(polname) from pg_policy where polrelid = pg_class.oid),
    (select array_agg((attname, atttypid, attnotnull) order by attnum) from pg_attribute where attrelid = pg_class.oid)
from pg_class where oid in ('organizations'::regclass, 'api_credentials'::regclass, 'contacts'::regclass)
"""


def application_state(database: Database) -> list[Any]:
    """Return the definitions and row versions of the application's tables."""
    with database.operator() as connection:
        tables = connection.execute(sa.text(APPLICATION_TABLES)).all()
        rows = [
            row_versions(connection, f"public.{table}") for table in ("organizations", "api_credentials", "contacts")
        ]
    return [list(map(str, tables)), rows]


def migrate_concurrently(urls: list[URL]) -> list[bool]:
    """Migrate all databases concurrently. Return for each URL whether anything changed."""
    start = Barrier(len(urls))

    def migrate(url: URL) -> bool:
        database = Database(url)
        try:
            start.wait(60)
            return schema.migrate(database).changed
        finally:
            database.close()

    with ThreadPoolExecutor(len(urls)) as threads:
        return list(threads.map(migrate, urls))


def has_pipeline_schema(database: Database) -> bool:
    """Return whether the database has any object of the pipeline."""
    return any(name.startswith("cliniko") for name in schema_objects(database))


def assert_one_line(error: Exception, *parts: str) -> None:
    """Assert that the message is one line that contains all the parts."""
    text = str(error)
    assert "\n" not in text
    assert all(part in text for part in parts), text
