"""The deletion of old rows in small transactions, the lock of a prune, and the sizes of tables."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import Database, advisory_key, sql, statement

BATCH_SIZE = 5000
"""The number of rows that one transaction deletes. Larger transactions would hold locks and old row versions longer."""

TREND_KEPT = timedelta(days=731)
"""How long daily numbers of active patients are kept: one day longer than the longest trend of the HTTP API."""

PIPELINE_TABLES = (
    "cliniko.sync_runs",
    "cliniko.daily_active_patients",
    "cliniko.webhook_deliveries",
    "cliniko.webhook_events",
    "cliniko.api_refusals",
)
"""The tables that grow with time, apart from Dagster's."""


@dataclass(frozen=True)
class OldRows:
    """The old rows of an operator table. `query` selects the ctid of at most :limit rows older than :before."""

    table: str
    query: str


OLD_DELIVERIES = OldRows(
    "cliniko.webhook_deliveries", "select ctid from cliniko.webhook_deliveries where ended_at < :before limit :limit"
)
OLD_EVENTS = OldRows("cliniko.webhook_events", sql("webhooks/old_events"))
OLD_REFUSALS = OldRows(
    "cliniko.api_refusals", "select ctid from cliniko.api_refusals where minute < :before limit :limit"
)


@contextmanager
def prune_lock(database: Database) -> Generator[bool, None, None]:
    """Yield whether no other process prunes. The lock belongs to a connection, so a killed process releases it."""
    key = {"key": advisory_key("cliniko_pipeline.prune")}
    with database.operator_statement() as connection:
        is_free = connection.execute(sa.text("select pg_try_advisory_lock(:key)"), key).scalar_one()
        if not is_free:
            yield False
            return
        connection.execute(sa.text("set idle_session_timeout = 0"))
        try:
            yield True
        finally:
            connection.execute(sa.text("select pg_advisory_unlock(:key)"), key)
            connection.execute(sa.text("reset idle_session_timeout"))


def delete_batch(connection: Connection, rows: OldRows, before: datetime) -> int:
    """Delete at most `BATCH_SIZE` of the rows; return their number."""
    # By ctid, because not every table has a key that finds its oldest rows.
    delete = statement(f"delete from {rows.table} where ctid = any(array({rows.query}))")
    return connection.execute(delete, {"before": before, "limit": BATCH_SIZE}).rowcount


def count_rows(connection: Connection, rows: OldRows, before: datetime) -> int:
    """Return the number of the rows."""
    count = statement(f"select count(*) from ({rows.query}) as old")
    return connection.execute(count, {"before": before, "limit": None}).scalar_one()


def delete_old_syncs(connection: Connection, before: datetime) -> int:
    """Delete at most `BATCH_SIZE` old syncs of the context's organization; return their number.

    The number of active patients of each day is kept, until no trend shows the day.
    """
    delete = statement(sql("runs/delete_old_syncs").format(old=sql("runs/old_syncs")))
    deleted = connection.execute(delete, {"before": before, "limit": BATCH_SIZE}).rowcount
    if deleted:
        connection.execute(
            statement("delete from cliniko.daily_active_patients where started_at < now() - cast(:kept as interval)"),
            {"kept": TREND_KEPT},
        )
    return deleted


def count_old_syncs(connection: Connection, before: datetime) -> int:
    """Return the number of old syncs of the context's organization."""
    count = statement(f"select count(*) from ({sql('runs/old_syncs')}) as old")
    return connection.execute(count, {"before": before, "limit": None}).scalar_one()


def size_of(connection: Connection, tables: Sequence[str]) -> int:
    """Return the bytes of the tables with their indexes. Tables that do not exist count as 0."""
    total = statement(
        "select coalesce(sum(pg_total_relation_size(to_regclass(name))), 0)::bigint"
        " from unnest(cast(:tables as text[])) as name"
    )
    return connection.execute(total, {"tables": list(tables)}).scalar_one()
