"""The preparation of new connections to PostgreSQL, for both drivers.

Statements set or verify what a session needs. Poolers drop some start-up parameters.
"""

import select
from typing import Any, Protocol

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import ConnectionPoolEntry

from cliniko_pipeline.errors import DatabaseSetupError, DatabaseUnavailableError

POOLER_PORTS = frozenset({"6432", "6543"})
"""Usual ports of poolers."""

SECOND_CONNECTION_SECONDS = 5
"""Maximum wait for a second connection in the check for a pooler; a small pool may have none left."""

# The drivers cannot read another DateStyle. Some statements need standard strings. Under a stricter isolation level a
# transaction fails when the row that it waits for has changed.
_SETTINGS = """
    select
        set_config('DateStyle', 'ISO, MDY', false),
        set_config('IntervalStyle', 'postgres', false),
        set_config('TimeZone', 'UTC', false),
        set_config('standard_conforming_strings', 'on', false),
        set_config('default_transaction_isolation', 'read committed', false),
        set_config('default_transaction_deferrable', 'off', false)
"""

_STATE = """
    select
        pg_is_in_recovery(),
        current_setting('session_replication_role'),
        quote_ident(session_user),
        quote_ident(current_database())
"""


_IS_READ_ONLY = "cliniko_pipeline.is_read_only"


class DriverConnection(Protocol):
    """The common interface of psycopg's and psycopg2's connections."""

    def cursor(self) -> Any:
        """Return a new cursor."""
        ...

    def commit(self) -> None:
        """End the transaction."""
        ...


def prepare_session(connection: DriverConnection) -> str:
    """Set what every session needs; verify what cannot be set; return the database user, quoted for SQL.

    Raises DatabaseSetupError where triggers would not fire, DatabaseUnavailableError where the server is a standby.
    """
    _row(connection, _SETTINGS)
    is_standby, replication_role, user, database = _row(connection, _STATE)
    if is_standby:
        raise DatabaseUnavailableError(
            "DATABASE_URL leads to a read-only standby: point it at the primary server. During a failover this passes"
            " by itself."
        )
    if replication_role != "origin":
        raise DatabaseSetupError(
            f"session_replication_role is {replication_role} for {user}, so no trigger fires and changes are missed:"
            f" run `alter role {user} reset session_replication_role`, `alter role {user} in database {database} reset"
            f" session_replication_role` and `alter database {database} reset session_replication_role` as a superuser."
        )
    return user


def keep_no_read_only_sessions(engine: Engine) -> None:
    """Make the pool close connections that were opened while the database was read-only.

    A session keeps that setting after the database takes writes again.
    """

    def note(connection: DriverConnection, entry: ConnectionPoolEntry) -> None:
        entry.info[_IS_READ_ONLY] = _ask(connection, "show default_transaction_read_only") == "on"

    def end(_connection: DriverConnection, entry: ConnectionPoolEntry) -> None:
        if entry.info.get(_IS_READ_ONLY):
            entry.invalidate(soft=True)

    event.listen(engine, "connect", note)
    event.listen(engine, "checkin", end)


def require_session_mode(connection: DriverConnection, reported_pid: int, second: dict[str, Any]) -> None:
    """Raise DatabaseSetupError where a pooler gives each transaction another session.

    Its locks and settings would stay on other clients' sessions. A direct connection costs one query: the server's
    process is the reported one. Otherwise a second connection is opened. In transaction mode it gets the session of the
    first one, or moves it to another session.

    Args:
        connection: a connection without any settings yet.
        reported_pid: the server's process id as the driver knows it.
        second: psycopg's parameters for another connection.
    """
    first = _ask(connection, "select pg_backend_pid()")
    if first == reported_pid and str(second.get("port")) not in POOLER_PORTS:
        return
    with psycopg.connect(**second) as other:
        taken = _pid_in_open_transaction(other)
        is_shared = taken == first or _ask(connection, "select pg_backend_pid()") != first
        other.pgconn.finish()
    if is_shared:
        raise DatabaseSetupError(
            "DATABASE_URL leads to a pooler in transaction mode, where locks and settings do not last: use its session"
            " mode or a direct connection (Supabase: port 5432 instead of 6543; PgBouncer: pool_mode = session)."
        )


def _pid_in_open_transaction(connection: "psycopg.Connection[Any]") -> int | None:
    """Begin a transaction that stays open; return the server's process id, or None where no session is free in time."""
    driver = connection.pgconn
    driver.send_query(b"begin; select pg_backend_pid()")
    pid = None
    while True:
        if driver.is_busy():
            if not select.select([driver.socket], [], [], SECOND_CONNECTION_SECONDS)[0]:
                return None
            driver.consume_input()
            continue
        if (result := driver.get_result()) is None:
            return pid
        if result.ntuples and (value := result.get_value(0, 0)) is not None:
            pid = int(value)


def enter_schema(connection: DriverConnection, schema: str) -> None:
    """Set the connection's search path to the schema.

    Raises DatabaseSetupError where it is not in effect: the next table would be created in another schema.
    """
    _ask(connection, "select set_config('search_path', quote_ident(%s), false)", schema)
    # In a transaction of its own, like all later statements.
    found = _ask(connection, "select current_schema()")
    if found != schema:
        raise DatabaseSetupError(
            f"The schema {schema} cannot be used: it is missing, the database user lacks the privilege (`grant usage,"
            f" create on schema {schema} to USER`), or a pooler does not keep a session's settings (connect in session"
            " mode, or directly)."
        )


def _row(connection: DriverConnection, text: str, *parameters: object) -> tuple[Any, ...]:
    """Execute a statement in a transaction of its own; return its first row."""
    with connection.cursor() as cursor:
        cursor.execute(text, parameters or None)
        row: tuple[Any, ...] = cursor.fetchone()
    connection.commit()
    return row


def _ask(connection: DriverConnection, text: str, *parameters: object) -> Any:
    return _row(connection, text, *parameters)[0]
