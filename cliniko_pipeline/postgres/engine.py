"""Connections to PostgreSQL, and the organization context of every statement on tenant data.

This module knows no tables. `tables` lists the tables, and `writing` fills them.
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
_CREATED = "cliniko_pipeline.created"
_GENERATION = "cliniko_pipeline.generation"


@cache
def sql(name: str) -> str:
    """Return the text of `sql/<name>.sql`."""
    return (resources.files("cliniko_pipeline.postgres") / "sql" / f"{name}.sql").read_text(encoding="utf-8")


@cache
def statement(text: str) -> sa.TextClause:
    """Return the parsed statement, cached because parsing takes longer than sending."""
    return sa.text(text)


class Database:
    """A pool of connections to the operator's PostgreSQL server or to the embedded server.

    `organization(id)` opens transactions on tenant data. `operator()` opens transactions on all other tables, such as
    organizations, credentials, schedules and alerts.

    Both raise DatabaseUnavailableError, DatabaseSetupError and DataError. The messages of these errors never contain a
    statement's parameters.
    """

    def __init__(self, url: str | URL) -> None:
        self.url = make_url(url).set(drivername="postgresql+psycopg")
        self._engine = sa.create_engine(
            self.url,
            hide_parameters=True,
            pool_pre_ping=True,
            # The most recently used connection has warm caches.
            pool_use_lifo=True,
            pool_size=5,
            max_overflow=10,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_SECONDS,
                "application_name": "cliniko_pipeline",
                # A role's settings may choose SQL_ASCII. psycopg would then return bytes instead of str.
                "client_encoding": "utf8",
            },
        )
        self._outside_transactions = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        # With `insert=True`, `_prepare` sets the isolation level before SQLAlchemy's listener remembers the level.
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
            # The pool does not own the connection yet, so nothing else would close it.
            connection.close()
            raise

    def _require_current_generation(self, _connection: object, entry: ConnectionPoolEntry, _proxy: object) -> None:
        """Make the pool replace a connection of an earlier generation (see `_translated`)."""
        if entry.info[_GENERATION] != self._generation:
            raise DisconnectionError

    def __repr__(self) -> str:
        return f"Database({self.location})"

    @property
    def location(self) -> str:
        """Return the database's name and host for messages, without user and password."""
        host = self.url.host or self.url.query.get("host") or "the local socket"
        return f"{self.url.database} on {host}"

    def close(self) -> None:
        """Close the pool's idle connections."""
        self._engine.dispose()

    @contextmanager
    def operator(self) -> Generator[Connection, None, None]:
        """Open a transaction as the user of DATABASE_URL.

        Row-level security hides tenant data from this user, unless the user bypasses it.
        """
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def operator_statement(self) -> Generator[Connection, None, None]:
        """Open an autocommit connection of DATABASE_URL's user, so that a hanging process keeps no lock."""
        with self._translated(), self._outside_transactions.connect() as connection:
            yield connection

    @contextmanager
    def organization(self, organization_id: str, *, is_resumable: bool = False) -> Generator[Connection, None, None]:
        """Open a transaction in the organization context.

        The transaction sees and writes one organization's rows only. The context consists of a role without BYPASSRLS
        and the setting `app.organization_id`. Both end with the transaction.

        Args:
            organization_id: the organization.
            is_resumable: whether the transaction saves its own checkpoint. The commit of a resumable transaction does
                not wait for the disk. If the server crashes, the crawl resumes at the last saved checkpoint.
        """
        with (
            self._translated(is_in_context=True),
            _forgetting_created_on_failure() as infos,
            self._engine.begin() as connection,
        ):
            infos.append(connection.info)
            parameters = {
                "organization_id": organization_id,
                "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
                "lock_timeout": f"{LOCK_TIMEOUT_SECONDS}s",
                "synchronous_commit": "off" if is_resumable else None,
            }
            # Pipelining sends the statement together with `begin`, which saves a round trip.
            enter = sql("context/enter_organization"), parameters
            [(*_, self._organization_role)] = execute_pipelined(connection, [enter])
            yield connection

    @contextmanager
    def organization_lock(self, organization_id: str) -> Generator[Callable[[], None], None, None]:
        """Hold the organization lock, so that no other run writes the organization's data.

        The lock has its own connection, and a lost connection releases the lock. Yield a function that raises
        DatabaseUnavailableError if the connection is lost. In that case another run may be writing, or the server may
        have crashed and lost commits that did not wait for the disk.

        Raise DatabaseUnavailableError if another run holds the lock for too long.
        """
        with self._translated(), self._outside_transactions.connect() as connection:
            key = {"key": advisory_key("organization", organization_id)}
            try:
                connection.execute(sa.text(f"set lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))
                # The lock's connection is idle while an account is read. A timeout would release the lock.
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
                        f"The connection that holds the lock of organization '{organization_id}' was lost"
                        f" ({self.location}): try again."
                    ) from None

            try:
                yield require
            finally:
                with suppress(SQLAlchemyError):  # If the connection is lost, the lock is released already.
                    connection.execute(sa.text("select pg_advisory_unlock(:key)"), key)
                    connection.execute(sa.text("reset lock_timeout"))
                    connection.execute(sa.text("reset idle_session_timeout"))

    def now(self) -> datetime:
        """Return the time of the server's clock."""
        with self.operator() as connection:
            return connection.execute(statement("select clock_timestamp()")).scalar_one().astimezone(UTC)

    def require_writable(self) -> None:
        """Raise DatabaseUnavailableError if the database is read-only at present."""
        with self.operator() as connection:
            takes_writes = not is_read_only(connection)
        if not takes_writes:
            raise DatabaseUnavailableError(f"PostgreSQL cannot be used ({self.location}): {READ_ONLY}")

    def require_supported_version(self) -> None:
        """Raise DatabaseSetupError if PostgreSQL is older than version 14 or not in UTF-8."""
        with self.operator() as connection:
            version = int(connection.execute(sa.text("show server_version_num")).scalar_one())
            encoding = connection.execute(sa.text("show server_encoding")).scalar_one()
        if version < OLDEST_SUPPORTED_VERSION * 10_000:
            raise DatabaseSetupError(
                f"PostgreSQL {version // 10_000} is too old: the pipeline needs version"
                f" {OLDEST_SUPPORTED_VERSION} or later. Upgrade the server or point DATABASE_URL at another server."
            )
        if encoding != "UTF8":
            raise DatabaseSetupError(
                f"The database's encoding is {encoding}, but the pipeline needs UTF8. Create another database with"
                " `createdb --encoding UTF8 --template template0 NAME`."
            )

    def translated(self, error: SQLAlchemyError | psycopg.Error, role: str | None = None) -> ClinikoPipelineError:
        """Return the ClinikoPipelineError for a database error in a transaction with this role."""
        return translated(error, self.location, role, self._user)

    @contextmanager
    def _translated(self, *, is_in_context: bool = False) -> Generator[None, None, None]:
        try:
            yield
        except ClinikoPipelineError:
            raise
        except (SQLAlchemyError, psycopg.Error) as error:
            if ends_pooled_connections(error):  # Open connections may keep failing.
                self._generation += 1
            # `from None` hides the driver's error, which can quote values of a row.
            raise self.translated(error, self._organization_role if is_in_context else None) from None


BoundStatement = tuple[str, Mapping[str, object]]
"""A statement and its parameters."""


def execute_pipelined(
    connection: Connection, statements: Sequence[BoundStatement], *, after_sending: Callable[[], object] = lambda: None
) -> list[Any]:
    """Execute the statements in one pipeline; return the first row of each, or None for no row.

    `after_sending` is called after the statements are sent and before their results are awaited.
    """
    driver = driver_of(connection)
    with driver.pipeline():
        cursors = [driver.execute(_psycopg_text(text), parameters) for text, parameters in statements]
        after_sending()
    return [cursor.fetchone() for cursor in cursors]


def is_read_only(connection: Connection) -> bool:
    """Return whether the transaction is read-only, so that callers can skip optional writes or raise an error."""
    return connection.execute(statement("show transaction_read_only")).scalar_one() == "on"


def driver_of(connection: Connection) -> "psycopg.Connection[Any]":
    """Return the driver's connection."""
    return cast("psycopg.Connection[Any]", connection.connection.driver_connection)


@cache
def _psycopg_text(text: str) -> bytes:
    return str(statement(text).compile(dialect=PGDialect_psycopg())).encode()


def ensure_created(connection: Connection, text: str) -> None:
    """Create an object of the session, such as a temporary table, once per connection."""
    created: set[str] = connection.info.setdefault(_CREATED, set())
    if text not in created:
        connection.execute(sa.text(text))
        created.add(text)


def forget_created(connection: Connection) -> None:
    """Make `ensure_created` create its objects again, because a savepoint was rolled back."""
    connection.info.pop(_CREATED, None)


@contextmanager
def _forgetting_created_on_failure() -> Generator[list[dict[Any, Any]]]:
    # A failed transaction rolls back the objects that it created. SQLAlchemy has no event for a failed commit.
    infos: list[dict[Any, Any]] = []
    try:
        yield infos
    except BaseException:
        for info in infos:
            info.pop(_CREATED, None)
        raise


def advisory_key(*parts: str) -> int:
    """Return a 64-bit key for an advisory lock, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
