"""Tables of the contenders, like the pipeline's but without row-level security."""

import psycopg

from benchmarks.others.tasks import Task
from cliniko_pipeline.postgres.tables import (
    ACTIVE_PATIENTS,
    APPOINTMENT_TYPES,
    APPOINTMENTS,
    CONTACT_MAPPING,
    PATIENTS,
    PRACTITIONERS,
    Table,
)

SCHEMA = "written_by_hand"
ORGANIZATION = "clinic"
TABLES = {
    "appointment_types": APPOINTMENT_TYPES,
    "practitioners": PRACTITIONERS,
    "patients": PATIENTS,
    "individual_appointments": APPOINTMENTS,
}
"""The pipeline's tables by resource."""

RESULTS = (CONTACT_MAPPING, ACTIVE_PATIENTS)


def make_tables(task: Task, *tables: Table) -> None:
    """Create the given tables, or by default the tables of all resources and results."""
    with psycopg.connect(task.database_url) as connection:
        connection.execute(f"create schema {SCHEMA}".encode())
        for table in tables or (*TABLES.values(), *RESULTS):
            columns = f"like {table.qualified} including all"
            connection.execute(f"create table {SCHEMA}.{table.name} ({columns})".encode())


def upsert(resource: str, source: str) -> bytes:
    """Return the statement that inserts or updates the rows of `source`, which has the columns `written`."""
    table = TABLES[resource]
    updated = ", ".join(f"{column} = excluded.{column}" for column in table.columns)
    statement = (
        f"insert into {SCHEMA}.{table.name} (organization_id, {', '.join(table.written)}) {source}"
        f" on conflict (organization_id, {', '.join(table.key)}) do update set {updated}, synced_at = now()"
    )
    return statement.encode()
