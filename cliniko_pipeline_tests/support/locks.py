"""The advisory locks of a database."""

import sqlalchemy as sa

from cliniko_pipeline.postgres.engine import Database

HELD = (
    "from pg_locks where locktype = 'advisory' and granted"
    " and database = (select oid from pg_database where datname = current_database())"
)
WAITING = HELD.replace("granted", "not granted")


def holds_a_lock(database: Database) -> bool:
    return _exists(database, HELD)


def waits_for_a_lock(database: Database) -> bool:
    return _exists(database, WAITING)


def _exists(database: Database, rows: str) -> bool:
    with database.operator() as connection:
        return connection.execute(sa.text(f"select exists (select {rows})")).scalar_one()
