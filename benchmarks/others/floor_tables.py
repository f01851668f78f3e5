"""Where the floors and the plain loop write: tables of the same columns, keys and indexes as ours, without row-level
security, and nothing beside them.
"""

import psycopg

from benchmarks.others.measuring import Task
from cliniko_pipeline.postgres.tables import APPOINTMENTS, PATIENTS

SCHEMA = "written_by_hand"
ORGANIZATION = "clinic"
TABLES = {"patients": PATIENTS, "individual_appointments": APPOINTMENTS}
"""Ours, by the resource they hold."""


def make_tables(task: Task) -> None:
    """Makes them, empty."""
    with psycopg.connect(task.database_url) as connection:
        connection.execute(f"create schema {SCHEMA}".encode())
        for table in TABLES.values():
            columns = f"like {table.qualified} including all"
            connection.execute(f"create table {SCHEMA}.{table.name} ({columns})".encode())


def upsert(resource: str, source: str) -> bytes:
    """The statement that inserts what `source` gives, the table's `written` in their order, or renews what is there."""
    table = TABLES[resource]
    renewed = ", ".join(f"{column} = excluded.{column}" for column in table.columns)
    statement = (
        f"insert into {SCHEMA}.{table.name} (organization_id, {', '.join(table.written)}) {source}"
        f" on conflict (organization_id, {', '.join(table.key)}) do update set {renewed}, synced_at = now()"
    )
    return statement.encode()
