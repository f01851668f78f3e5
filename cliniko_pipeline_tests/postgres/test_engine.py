"""Tests of errors between the pipeline and PostgreSQL, which are one line with a reason and without secrets."""

import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from cliniko_pipeline.errors import (
    ClinikoPipelineError,
    DatabaseSetupError,
    DatabaseUnavailableError,
    DataError,
)
from cliniko_pipeline.postgres import engine
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.tables import PATIENTS
from cliniko_pipeline.postgres.writing.merge import upsert
from cliniko_pipeline_tests.support.environments import free_port

SECRET = "s3cret-of-the-clinic"
PATIENT = "Ann Lee-of-nobodys-business"


@pytest.fixture
def database(module_database: Database) -> Database:
    return module_database


def failing(database: Database, statement: str, **parameters: object) -> Callable[[], None]:
    def fail() -> None:
        with database.organization("a") as connection:
            connection.execute(sa.text(statement), parameters)

    return fail


def error_of(fail: Callable[[], object], *forbidden: str) -> ClinikoPipelineError:
    """Return the error that `fail` raises. Assert that no logged text of it has a parameter or a password."""
    with pytest.raises(ClinikoPipelineError) as raised:
        fail()
    error = raised.value
    # Lines of code are left out, because they contain the constants of these tests.
    lines = [line for line in traceback.format_exception(error) if "File " not in line]
    shown = "\n".join([str(error), repr(error), str(error.args), *lines])
    for word in (SECRET, PATIENT, *forbidden):
        assert word not in shown
    assert "\n" not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__
    return error


def unavailable(fail: Callable[[], object], *forbidden: str) -> str:
    error = error_of(fail, *forbidden)
    assert type(error) is DatabaseUnavailableError
    return str(error)


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda _: f"postgresql://u:{SECRET}@127.0.0.1:{free_port()}/d", "the connection was refused"),
        (lambda _: f"postgresql://u:{SECRET}@nowhere.invalid/d", "the host name is unknown"),
        (lambda _: f"postgresql://u:{SECRET}@/d?host=/nowhere", "there is no server at that socket"),
        (lambda url: url.set(username="cliniko_pipeline", password=SECRET), "the user name or the password is wrong"),
        (lambda url: url._replace(password=None), "a password is needed"),
        (lambda url: url.set(database="no_such_database"), "that database does not exist"),
    ],
)
def test_unreachable_database_is_reported_with_the_reason(
    fresh_server_url: URL, closing: ExitStack, make, reason: str
) -> None:
    database = Database(make(fresh_server_url))
    closing.callback(database.close)
    error = unavailable(failing(database, "select 1"), str(fresh_server_url.password))
    assert reason in error
    assert database.location in error


@pytest.mark.slow
def test_connection_timeout_is_reported(monkeypatch: pytest.MonkeyPatch, closing: ExitStack) -> None:
    monkeypatch.setattr(engine, "CONNECT_TIMEOUT_SECONDS", 1)  # libpq splits this line in two
    silent = closing.enter_context(socket.create_server(("127.0.0.1", 0)))
    database = Database(f"postgresql://u:{SECRET}@127.0.0.1:{silent.getsockname()[1]}/d")
    assert "the connection timed out" in unavailable(failing(database, "select 1"))


def test_connection_killed_in_a_transaction_is_reported(database: Database) -> None:
    def fail() -> None:
        with database.organization("a") as connection:
            connection.execute(sa.text("select cast(:name as text)"), {"name": PATIENT})
            with database.operator() as other:
                pid = _driver(connection).info.backend_pid
                other.execute(sa.text("select pg_terminate_backend(:pid, 5000)"), {"pid": pid})
            connection.execute(sa.text("select cast(:name as text)"), {"name": PATIENT})

    unavailable(fail)
    with database.organization("a") as connection:
        assert connection.execute(sa.text("select 1")).scalar_one() == 1


@pytest.mark.parametrize(
    ("setting", "statement", "reason"),
    [
        ("statement_timeout", "select pg_sleep(5)", "a statement took too long"),
        ("lock_timeout", "select pg_advisory_xact_lock(77)", "another transaction held a lock for too long"),
    ],
)
def test_statement_timeout_and_lock_timeout_are_reported(
    database: Database, closing: ExitStack, setting: str, statement: str, reason: str
) -> None:
    holder = closing.enter_context(database.operator())
    holder.execute(sa.text("select pg_advisory_xact_lock(77)"))

    def fail() -> None:
        with database.organization("a") as connection:
            connection.execute(sa.text(f"set local {setting} = '30ms'"))
            connection.execute(sa.text(statement))

    assert reason in unavailable(fail)


def test_reason_does_not_depend_on_the_servers_language(database: Database) -> None:
    # The server speaks only English, so these messages are made up, but their codes are real.
    for state, reason in (
        ("57014", "took too long"),
        ("55P03", "held a lock"),
        ("40P01", "waited for each other"),
        ("53300", "no connection left"),
        ("28P01", "password is wrong"),
        ("3D000", "does not exist"),
        ("57P01", "shut down"),
    ):
        cause = psycopg.errors.lookup(state)("Unlesbar")
        error = sa.exc.OperationalError("select", {"name": PATIENT}, cause)
        with pytest.raises(DatabaseUnavailableError, match=reason) as raised, database.operator():
            raise error
        assert not raised.value.permanent
    # A time-out of libpq has no code. A slow test has a real time-out.
    cause = psycopg.errors.ConnectionTimeout("connection timeout expired")
    with pytest.raises(DatabaseUnavailableError, match="the connection timed out"), database.operator():
        raise sa.exc.OperationalError("select", {"name": PATIENT}, cause)


def test_organization_context_sets_statement_and_lock_timeout(database: Database) -> None:
    with database.organization("a") as connection:
        limits = connection.execute(
            sa.text("select current_setting('statement_timeout'), current_setting('lock_timeout')")
        ).one()
    assert tuple(limits) == ("15min", "5min")


def test_exhausted_pool_is_transient(database: Database, closing: ExitStack) -> None:
    small = Database(database.url)
    closing.callback(small.close)
    small._engine.pool._timeout = 0.01
    most = small._engine.pool.size() + small._engine.pool._max_overflow

    def fail() -> None:
        with ExitStack() as stack:
            for _ in range(most + 1):
                stack.enter_context(small.operator())

    assert "connection" in unavailable(fail)


@pytest.mark.parametrize(
    ("statement", "kind", "words"),
    [
        ("select * from cliniko.nowhere where id = :name", DatabaseSetupError, "cliniko-pipeline migrate"),
        (
            "select nothing from cliniko.patients where id = :name",
            DatabaseSetupError,
            "differ from what the pipeline expects",
        ),
        (
            "select * from public.contacts where name = :name",
            DatabaseSetupError,
            "permission denied for table contacts",
        ),
        ("select cast(:name as integer)", DataError, "InvalidTextRepresentation"),
        ("insert into cliniko.patients (organization_id, id) values ('b', :name)", DatabaseSetupError, "patients"),
        (
            "insert into cliniko.crawls select 'a', :name, now() from generate_series(1, 2)",
            DataError,
            "UniqueViolation",
        ),
        ("do $$ begin raise exception using message = '" + PATIENT + "'; end $$", DataError, "RaiseException"),
    ],
)
def test_refused_statement_is_reported_without_parameters(
    database: Database, statement: str, kind: type[Exception], words: str
) -> None:
    error = error_of(failing(database, statement, **({"name": PATIENT} if ":name" in statement else {})))
    assert type(error) is kind
    assert words in str(error)


def test_unusable_parameter_is_reported_without_its_value(database: Database) -> None:
    for value in (f"{PATIENT}\x00", SimpleNamespace(name=PATIENT), {"name": PATIENT}):
        assert type(error_of(failing(database, "select :value", value=value))) is DataError


def test_value_refused_by_copy_is_not_quoted(database: Database) -> None:
    def fail() -> None:
        rows = [("1", *[PATIENT] * (len(PATIENTS.written) - 1))]
        with database.organization("a") as connection:
            upsert(connection, PATIENTS, rows)

    assert "InvalidDatetimeFormat" in str(error_of(fail))


def test_error_of_the_pipeline_is_not_translated(database: Database) -> None:
    with pytest.raises(DataError, match="mine"), database.organization("a"):
        raise DataError("mine")


def test_organization_id_may_be_any_text(database: Database) -> None:
    for text in ("", "a'b\"😀\\b:c%d", "x" * 3000):
        with database.organization(text) as connection:
            assert connection.exec_driver_sql("select current_setting('app.organization_id')").scalar_one() == text


def test_database_repr_hides_user_and_password() -> None:
    database = Database(f"postgresql://someone:{SECRET}@db.example/clinic?sslmode=require")
    for shown in (repr(database), str(database), database.location, repr(database.url), str(database.url)):
        assert SECRET not in shown
    assert repr(database) == "Database(clinic on db.example)"


def _driver(connection: Connection) -> psycopg.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver
