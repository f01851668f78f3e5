"""The preparation of new connections to PostgreSQL, for psycopg and psycopg2.

Settings of a session are set by statements, because poolers drop some start-up parameters.
"""

import select
from typing import Any, Protocol

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import ConnectionPoolEntry

from cliniko_pipeline.errors import DatabaseSetupError, DatabaseUnavailableError

POOLER_PORTS = frozenset({"6432", "6543"})
"""The usual ports of poolers."""

SECOND_CONNECTION_SECONDS = 5
"""The maximum wait for a second connection. A pooler may have no free connection."""

# The drivers cannot read dates in another DateStyle. Some statements need standard strings. Under a stricter isolation
# level than read committed, a transaction would fail if it waited for a row that another transaction changed.
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
    """Set the session's settings; return the database user, quoted for SQL.

    Raises DatabaseSetupError if triggers would not fire, and DatabaseUnavailableError if the server is a standby.
    """
    _row(connection, _SETTINGS)
    is_standby, replication_role, user, database = _row(connection, _STATE)
    if is_standby:
        raise DatabaseUnavailableError(
            "DATABASE_URL leads to a read-only standby: point it at the primary server. During a failover, wait until"
            " the standby has become the primary."
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

    The session of such a connection stays read-only after the database accepts writes again.
    """

    def note(connection: DriverConnection, entry: ConnectionPoolEntry) -> None:
        entry.info[_IS_READ_ONLY] = _ask(connection, "show default_transaction_read_only") == "on"

    def end(_connection: DriverConnection, entry: ConnectionPoolEntry) -> None:
        if entry.info.get(_IS_READ_ONLY):
            entry.invalidate(soft=True)

    event.listen(engine, "connect", note)
    event.listen(engine, "checkin", end)


def require_session_mode(connection: DriverConnection, reported_pid: int, second: dict[str, Any]) -> None:
    """Raise DatabaseSetupError if a pooler gives each transaction another session.

    Locks and settings would then end up in other clients' sessions. One query recognizes a direct connection, because
    the server process has the id that the driver knows. Otherwise a second connection is opened. In transaction mode,
    the second connection gets the first one's session, or the first connection gets another session.

    Args:
        connection: a connection without any settings yet.
        reported_pid: the server's process id that the driver knows.
        second: psycopg's parameters for the second connection.
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
    """Begin a transaction; return the server's process id, or None if no session is free in time."""
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

    Raises DatabaseSetupError if the search path has no effect. Tables would then be created in another schema.
    """
    _ask(connection, "select set_config('search_path', quote_ident(%s), false)", schema)
    # Checked in another transaction, because all later statements are in other transactions, too.
    found = _ask(connection, "select current_schema()")
    if found != schema:
        raise DatabaseSetupError(
            f"The schema {schema} cannot be used: it is missing, the database user lacks the privilege (`grant usage,"
            f" create on schema {schema} to USER`), or a pooler does not keep a session's settings (connect in session"
            " mode, or directly)."
        )


def _row(connection: DriverConnection, text: str, *parameters: object) -> tuple[Any, ...]:
    """Execute a statement in its own transaction; return the first row."""
    with connection.cursor() as cursor:
        cursor.execute(text, parameters or None)
        row: tuple[Any, ...] = cursor.fetchone()
    connection.commit()
    return row


def _ask(connection: DriverConnection, text: str, *parameters: object) -> Any:
    return _row(connection, text, *parameters)[0]
