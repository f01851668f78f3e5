"""The connection to PostgreSQL and the organization context that every statement on tenant data runs in.

Nothing here knows a table of its own: what is stored stands in `tables`, how it is written in `merge`.
"""

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any, cast

import psycopg
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from cliniko_pipeline.errors import (
    ClinikoPipelineError,
    DatabaseSetupError,
    DatabaseUnavailableError,
    DataError,
)

OLDEST_SUPPORTED_VERSION = 14
CONNECT_TIMEOUT_SECONDS = 10
STATEMENT_TIMEOUT_SECONDS = 15 * 60
LOCK_TIMEOUT_SECONDS = 5 * 60
LOCK_NOT_AVAILABLE = "55P03"
INSUFFICIENT_PRIVILEGE = "42501"
HIDDEN_CONTACTS = "CP001"
"""Raised by `cliniko.require_visible_contacts()`, with a message that says what to do."""
_MADE = "cliniko_pipeline.made"


@cache
def sql(name: str) -> str:
    """The text of `sql/<name>.sql`."""
    return (resources.files("cliniko_pipeline.postgres") / "sql" / f"{name}.sql").read_text(encoding="utf-8")


@cache
def statement(text: str) -> sa.TextClause:
    """The statement, read once: to find its parameters takes longer than to send it."""
    return sa.text(text)


class Database:
    """The operator's PostgreSQL, or the embedded one: a pool of connections and two ways to use one.

    `organization(id)` is the way to all tenant data; `operator()` is for the tables around it (organizations,
    credentials), for migrations and for nothing else.

    Raises, from both: DatabaseUnavailableError, DatabaseSetupError, DataError. Their messages never hold a
    statement's parameters.
    """

    def __init__(self, url: str | URL) -> None:
        self.url = make_url(url).set(drivername="postgresql+psycopg")
        self._engine = sa.create_engine(
            self.url,
            hide_parameters=True,
            pool_pre_ping=True,
            # What a connection has learnt of tables and statements is used again.
            pool_use_lifo=True,
            pool_size=5,
            max_overflow=10,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_SECONDS,
                "application_name": "cliniko_pipeline",
                # Whatever the database's own: text must not come as bytes before that was looked at.
                "client_encoding": "utf8",
            },
        )
        self._outside_transactions = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        event.listen(self._engine, "connect", _read_committed)

    def __repr__(self) -> str:
        return f"Database({self.location})"

    @property
    def location(self) -> str:
        """Host and database name, for messages: never the user or the password."""
        host = self.url.host or self.url.query.get("host") or "the local socket"
        return f"{self.url.database} on {host}"

    def close(self) -> None:
        """Closes the pool's idle connections."""
        self._engine.dispose()

    @contextmanager
    def operator(self) -> Generator[Connection, None, None]:
        """A transaction with the rights of DATABASE_URL's own user. Row-level security hides tenant data here
        too, unless that user may bypass it.
        """
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def operator_statement(self) -> Generator[Connection, None, None]:
        """The same without a transaction around it: each statement has ended, and its locks with it, before its result
        is on its way. A process that stands still, or whose machine is gone, holds nobody up.
        """
        with self._translated(), self._outside_transactions.connect() as connection:
            yield connection

    @contextmanager
    def organization(self, organization_id: str, *, is_resumable: bool = False) -> Generator[Connection, None, None]:
        """A transaction that sees and writes the rows of one organization, and no others.

        It has switched to a role without BYPASSRLS and set `app.organization_id`, both only until its end. One that
        `is_resumable` holds with its data where to go on from: its end does not wait for the disk. A server that
        crashes then loses the last of them as a whole, and they are written again.
        """
        with self._translated(), _forgetting_what_a_failure_undid() as info, self._engine.begin() as connection:
            info.append(connection.info)
            parameters = {
                "organization_id": organization_id,
                "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
                "lock_timeout": f"{LOCK_TIMEOUT_SECONDS}s",
                "synchronous_commit": "off" if is_resumable else None,
            }
            # With the begin of the transaction.
            at_once(connection, [(sql("enter_organization"), parameters)])
            yield connection

    @contextmanager
    def turn(self, organization_id: str) -> Generator[Callable[[], None], None, None]:
        """Has the organization's data written by nobody else until the end; waits for its turn.

        The lock belongs to a connection of its own: it ends with it, however that ends. What it gives raises
        DatabaseUnavailableError where that has happened: others may be writing, and of a server that crashed what did
        not wait for the disk is gone, though other connections work again. Raises the same where another run goes on
        for too long.
        """
        with self._translated(), self._outside_transactions.connect() as connection:
            key = {"key": advisory_key("organization", organization_id)}
            try:
                connection.execute(sa.text(f"set lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))
                # Nothing is asked of it while an account is read.
                connection.execute(sa.text("set idle_session_timeout = 0"))
                connection.execute(sa.text("select pg_advisory_lock(:key)"), key)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                    raise
                raise DatabaseUnavailableError(
                    f"Another run has been writing organization '{organization_id}' for more than"
                    f" {LOCK_TIMEOUT_SECONDS:.0f} s: try again when it has ended."
                ) from None

            def require() -> None:
                try:
                    driver_of(connection).execute(b"select 1")
                except (SQLAlchemyError, psycopg.Error):
                    raise DatabaseUnavailableError(
                        f"The connection that keeps organization '{organization_id}' for this run was lost"
                        f" ({self.location}): try again."
                    ) from None

            try:
                yield require
            finally:
                with suppress(SQLAlchemyError):  # a lost connection has lost the lock, too
                    connection.execute(sa.text("select pg_advisory_unlock(:key)"), key)
                    connection.execute(sa.text("reset lock_timeout"))
                    connection.execute(sa.text("reset idle_session_timeout"))

    def now(self) -> datetime:
        """Return the time by the server's clock."""
        with self.operator() as connection:
            return connection.execute(statement("select clock_timestamp()")).scalar_one().astimezone(UTC)

    def require_supported_version(self) -> None:
        """Raises DatabaseSetupError where the server is older than PostgreSQL 14 or not in UTF-8."""
        with self.operator() as connection:
            version = int(connection.execute(sa.text("show server_version_num")).scalar_one())
            encoding = connection.execute(sa.text("show server_encoding")).scalar_one()
        if version < OLDEST_SUPPORTED_VERSION * 10_000:
            raise DatabaseSetupError(
                f"PostgreSQL {version // 10_000} is too old: the pipeline needs version"
                f" {OLDEST_SUPPORTED_VERSION} or later; upgrade the server or point DATABASE_URL at another."
            )
        if encoding != "UTF8":
            raise DatabaseSetupError(
                f"The database is encoded in {encoding}: the pipeline needs UTF8;"
                " create one with `createdb --encoding UTF8 --template template0`."
            )

    @contextmanager
    def _translated(self) -> Generator[None, None, None]:
        try:
            yield
        except ClinikoPipelineError:
            raise
        except (SQLAlchemyError, psycopg.Error) as error:
            # The chain is cut: a driver's error can quote the row it failed on.
            raise self._translate(error) from None

    def _translate(self, error: SQLAlchemyError | psycopg.Error) -> ClinikoPipelineError:
        cause = error.orig if isinstance(error, DBAPIError) else error
        state = getattr(cause, "sqlstate", None) or ""
        return self._unavailable(cause, state) or _refused(cause, state)

    def _unavailable(self, cause: BaseException | None, state: str) -> DatabaseUnavailableError | None:
        if isinstance(cause, PoolTimeoutError):
            return DatabaseUnavailableError(
                f"No connection to PostgreSQL became free ({self.location}): this process uses all it may have;"
                " try again."
            )
        if state in _GIVEN_UP:
            return DatabaseUnavailableError(
                f"PostgreSQL gave up a statement ({self.location}): {_GIVEN_UP[state]}. Try again."
            )
        if _is_connection_failure(cause, state):
            return DatabaseUnavailableError(
                f"PostgreSQL cannot be used ({self.location}): {_connection_reason(cause, state)}."
                " Check that the server runs and that DATABASE_URL is right, then try again."
            )
        return None


def _read_committed(connection: "psycopg.Connection[Any]", _record: object) -> None:
    # Whatever the database's own: under a stricter level whoever waits for a row that changes meanwhile fails.
    connection.execute("set session characteristics as transaction isolation level read committed")
    # Some statements hold escapes that the old rules for texts refuse.
    connection.execute("set standard_conforming_strings = on")
    _fire_triggers(connection)
    connection.commit()


def _fire_triggers(connection: "psycopg.Connection[Any]") -> None:
    # As `replica`, which a role or a database may be set to, triggers and deferred constraints do not work.
    try:
        connection.execute(
            "select set_config('session_replication_role', 'origin', false)"
            " where current_setting('session_replication_role') <> 'origin'"
        )
    except psycopg.errors.InsufficientPrivilege:
        raise DatabaseSetupError(
            f"The setting session_replication_role of the user {connection.info.user} is not `origin` in the database"
            f" {connection.info.dbname}: no trigger fires, and changes would go unnoticed. `\\drds` in psql says what"
            " sets it; reset it as a superuser with `alter role NAME [in database NAME] reset session_replication_role`"
            " or `alter database NAME reset session_replication_role`."
        ) from None


Sent = tuple[str, Mapping[str, object]]
"""A statement, and its parameters."""


def at_once(
    connection: Connection, statements: Sequence[Sent], *, meanwhile: Callable[[], object] = lambda: None
) -> list[Any]:
    """Sends the statements together and waits for all of them once; the first row of each, None where there is none.

    `meanwhile` is called when they are on their way.
    """
    driver = driver_of(connection)
    with driver.pipeline():
        cursors = [driver.execute(_as_psycopg_takes_it(text), parameters) for text, parameters in statements]
        meanwhile()
    return [cursor.fetchone() for cursor in cursors]


def driver_of(connection: Connection) -> "psycopg.Connection[Any]":
    """The driver's own connection, for what SQLAlchemy does not offer."""
    return cast("psycopg.Connection[Any]", connection.connection.driver_connection)


@cache
def _as_psycopg_takes_it(text: str) -> bytes:
    return str(statement(text).compile(dialect=PGDialect_psycopg())).encode()


def once(connection: Connection, text: str) -> None:
    """Executes a statement that makes something which stays with the connection, unless it has been made."""
    made: set[str] = connection.info.setdefault(_MADE, set())
    if text not in made:
        connection.execute(sa.text(text))
        made.add(text)


def forget_made(connection: Connection) -> None:
    """Let `once` make everything again: a savepoint was rolled back, and what was made since then is gone."""
    connection.info.pop(_MADE, None)


@contextmanager
def _forgetting_what_a_failure_undid() -> Generator[list[dict[Any, Any]]]:
    # It may have been made in the very transaction that is undone. No event tells of a commit that fails.
    info: list[dict[Any, Any]] = []
    try:
        yield info
    except BaseException:
        for each in info:
            each.pop(_MADE, None)
        raise


def _refused(cause: BaseException | None, state: str) -> ClinikoPipelineError:
    message = _primary_message(cause)
    if state == HIDDEN_CONTACTS:
        return DatabaseSetupError(message)
    if is_refused_by_a_policy(cause):
        return DatabaseSetupError(
            f"Row-level security would hide rows from the pipeline, and they would be taken for deleted: {message}. Let"
            " the table's owner exempt the role that reads it (bypassrls, or `alter table ... no force row level"
            " security` where that role owns the table)."
        )
    if state == INSUFFICIENT_PRIVILEGE:
        return DatabaseSetupError(
            f"The database user lacks a privilege: {message}."
            " Grant it, or let a user who has it run `cliniko-pipeline migrate`."
        )
    if state in {"42P01", "3F000", "42883", "22023", "42704"}:  # undefined table, schema, function, role
        return DatabaseSetupError(
            f"The database is not set up: {message}."
            " Run `cliniko-pipeline migrate`; `cliniko-pipeline doctor` tells what else is missing."
        )
    if state in {"42703", "42804", "42830"}:  # undefined column, wrong type
        return DatabaseSetupError(
            f"A table is not as the pipeline expects it: {message}. `cliniko-pipeline doctor` tells more."
        )
    kind = type(cause).__name__
    return DataError(f"PostgreSQL refused a statement ({kind}, SQLSTATE {state or 'unknown'}).")


def is_refused_by_a_policy(cause: BaseException | None) -> bool:
    """Return whether PostgreSQL refused a query with row_security off. It has no SQLSTATE of its own, and its words are
    translated; the function that raises it is the same in all languages.
    """
    return getattr(getattr(cause, "diag", None), "source_function", None) == "check_enable_rls"


# Statements that may do better another time.
_GIVEN_UP = {
    "40001": "another transaction changed the same rows",
    "40P01": "two transactions waited for each other",
    "55P03": "another transaction held a lock for too long",
    "57014": "a statement took too long, or was cancelled",
}

_CONNECTION_REASONS = {
    "28000": "the user may not connect",
    "28P01": "the user name or password is wrong",
    "3D000": "that database does not exist",
    "53100": "the server's disk is full",
    "53200": "the server is out of memory",
    "53300": "the server has no connection left",
    "57P01": "the server shut down or ended the connection",
    "57P02": "the server shut down or ended the connection",
    "57P03": "the server is starting up or shutting down",
}

# libpq reports what happens on connecting in words only.
_CONNECTION_WORDS = {
    "password authentication failed": "the user name or password is wrong",
    "no password supplied": "a password is needed",
    "does not exist": "that database or user does not exist",
    "connection refused": "the connection was refused",
    "could not translate host name": "the host name is unknown",
    "name or service not known": "the host name is unknown",
    "failed to resolve host": "the host name is unknown",
    "timeout": "the connection timed out",
    "no such file or directory": "there is no server at that socket",
    "too many": "the server has no connection left",
    "starting up": "the server is starting up or shutting down",
    "shutting down": "the server is starting up or shutting down",
}


def _is_connection_failure(cause: BaseException | None, state: str) -> bool:
    # 08: connection, 28: no such user or password, 3D: no such database, 40: rolled back, 53: resources,
    # 57P: shutdown. What libpq reports itself has no state.
    if isinstance(cause, psycopg.OperationalError) and not state:
        return True
    return state[:2] in {"08", "28", "3D", "40", "53"} or state[:3] == "57P"


def _primary_message(cause: BaseException | None) -> str:
    # The primary message of these classes names objects, never values; details (which may) are left out.
    diagnostics = getattr(cause, "diag", None)
    return (getattr(diagnostics, "message_primary", None) or type(cause).__name__).strip()


def _connection_reason(cause: BaseException | None, state: str) -> str:
    text = str(cause).lower()
    by_words = (reason for words, reason in _CONNECTION_WORDS.items() if not state and words in text)
    return _CONNECTION_REASONS.get(state) or next(by_words, "the connection broke")


def advisory_key(*parts: str) -> int:
    """A 64-bit key for an advisory lock: the same parts give the same key on every machine."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
