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
from sqlalchemy.exc import DBAPIError, DisconnectionError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from cliniko_pipeline.errors import (
    ClinikoPipelineError,
    DatabaseSetupError,
    DatabaseUnavailableError,
)
from cliniko_pipeline.postgres.server.connections import (
    keep_no_read_only_sessions,
    prepare_session,
    require_session_mode,
)
from cliniko_pipeline.postgres.server.driver_errors import ends_pooled_connections, state_of, translated
from cliniko_pipeline.postgres.server.faults import READ_ONLY

OLDEST_SUPPORTED_VERSION = 14
CONNECT_TIMEOUT_SECONDS = 10
STATEMENT_TIMEOUT_SECONDS = 15 * 60
LOCK_TIMEOUT_SECONDS = 5 * 60
LOCK_NOT_AVAILABLE = "55P03"
INSUFFICIENT_PRIVILEGE = "42501"
_MADE = "cliniko_pipeline.made"
_GENERATION = "cliniko_pipeline.generation"


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
        # First of all: SQLAlchemy looks at the first connection's isolation level, and goes back to that.
        event.listen(self._engine, "connect", self._prepare, insert=True)
        keep_no_read_only_sessions(self._engine)
        event.listen(self._engine, "checkout", self._require_current_generation)
        self._is_session_mode = False
        self._generation = 0
        self._user: str | None = None
        self._organization_role: str | None = None

    def _prepare(self, connection: "psycopg.Connection[Any]", entry: ConnectionPoolEntry) -> None:
        entry.info[_GENERATION] = self._generation
        try:
            if not self._is_session_mode:
                second = {**connection.info.get_parameters(), "password": connection.info.password or None}
                require_session_mode(connection, connection.pgconn.backend_pid, second)
                self._is_session_mode = True
            self._user = prepare_session(connection)
        except BaseException:
            # The pool does not know a connection yet whose preparation fails.
            connection.close()
            raise

    def _require_current_generation(self, _connection: object, entry: ConnectionPoolEntry, _proxy: object) -> None:
        """Have the pool replace a connection opened before the server failed in a way that outlives a statement."""
        if entry.info[_GENERATION] != self._generation:
            raise DisconnectionError

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
        with (
            self._translated(is_in_context=True),
            _forgetting_what_a_failure_undid() as info,
            self._engine.begin() as connection,
        ):
            info.append(connection.info)
            parameters = {
                "organization_id": organization_id,
                "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
                "lock_timeout": f"{LOCK_TIMEOUT_SECONDS}s",
                "synchronous_commit": "off" if is_resumable else None,
            }
            # With the begin of the transaction.
            [(*_, self._organization_role)] = at_once(connection, [(sql("context/enter_organization"), parameters)])
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
                if state_of(error) != LOCK_NOT_AVAILABLE:
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

    def require_writable(self) -> None:
        """Raise DatabaseUnavailableError where the database takes no writes at present."""
        with self.operator() as connection:
            takes_writes = not is_read_only(connection)
        if not takes_writes:
            raise DatabaseUnavailableError(f"PostgreSQL cannot be used ({self.location}): {READ_ONLY}")

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

    def translated(self, error: SQLAlchemyError | psycopg.Error, role: str | None = None) -> ClinikoPipelineError:
        """Return the pipeline's error for a driver's; `role` is what the transaction had switched to, if anything."""
        return translated(error, self.location, role, self._user)

    @contextmanager
    def _translated(self, *, is_in_context: bool = False) -> Generator[None, None, None]:
        try:
            yield
        except ClinikoPipelineError:
            raise
        except (SQLAlchemyError, psycopg.Error) as error:
            if ends_pooled_connections(error):
                self._generation += 1
            # The chain is cut: a driver's error can quote the row it failed on.
            raise self.translated(error, self._organization_role if is_in_context else None) from None


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


def is_read_only(connection: Connection) -> bool:
    """Return whether the transaction may write nothing, so that what can wait is left out."""
    return connection.execute(statement("show transaction_read_only")).scalar_one() == "on"


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


def advisory_key(*parts: str) -> int:
    """A 64-bit key for an advisory lock: the same parts give the same key on every machine."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
