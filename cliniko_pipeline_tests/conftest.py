"""What all tests share: a real PostgreSQL, and a pipeline on a database of its own.

CLINIKO_TEST_DATABASE_URL, the URL of a superuser of another server, makes the tests use that one instead.
HYPOTHESIS_PROFILE=thorough draws many more examples of every property.
"""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from uuid import uuid4

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet
from hypothesis import settings
from sqlalchemy.engine import URL, make_url

from cliniko_pipeline.postgres import schema
from cliniko_pipeline.postgres.embedded import EmbeddedServer
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline_tests.pipeline import PipelineUnderTest, opened_pipeline

settings.register_profile("default", deadline=None, print_blob=True, max_examples=100)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
THOROUGH = settings.default == settings.get_profile("thorough")

COUNTED = "histories"
"""The property of a test that says how many histories it has lived through (see pytest_terminal_summary)."""


def examples(usually: int, thoroughly: int | None = None) -> int:
    """How many examples of a property to draw: so many, twenty times as many in the thorough profile unless told."""
    if not THOROUGH:
        return usually
    return 20 * usually if thoroughly is None else thoroughly


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    ends = [report for report in reports if getattr(report, "when", None) == "teardown"]
    counted = [value for report in ends for name, value in report.user_properties if name == COUNTED]
    if counted:
        histories, syncs = (sum(one) for one in zip(*counted, strict=True))
        terminalreporter.write_line(f"Lived through {histories} histories of a clinic, with {syncs} syncs.")


OWN_FOLDER = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    # A folder of this session's own: whenever a pytest starts, it closes the one that all share to the account which
    # root gives the embedded servers, those of other sessions included.
    if config.option.basetemp is None:
        config.option.basetemp = config.stash[OWN_FOLDER] = mkdtemp(prefix="cliniko-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if OWN_FOLDER in config.stash:
        shutil.rmtree(config.stash[OWN_FOLDER], ignore_errors=True)


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    given = os.environ.get("CLINIKO_TEST_DATABASE_URL")
    if given:
        yield make_url(given)
        return
    with EmbeddedServer(tmp_path_factory.mktemp("server") / "postgres") as server:
        yield server.url


@pytest.fixture(scope="session")
def template(server_url: URL) -> Iterator[str]:
    """The name of a migrated database with the application's tables, to be copied."""
    name = f"template_{uuid4().hex}"
    _administer(server_url, f"create database {name}")
    database = Database(server_url.set(database=name))
    schema.migrate(database, create_application_tables=True)
    database.close()
    yield name
    _administer(server_url, f"drop database {name} with (force)")


@pytest.fixture
def empty_database_url(server_url: URL) -> Iterator[URL]:
    """A database with nothing in it."""
    yield from _database(server_url, "template1")


@pytest.fixture
def database_url(server_url: URL, template: str) -> Iterator[URL]:
    """A migrated database with the application's tables, all empty."""
    yield from _database(server_url, template)


@pytest.fixture
def database(database_url: URL) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def pipeline(database_url: URL, tmp_path: Path) -> Iterator[PipelineUnderTest]:
    with opened_pipeline(environment(database_url, tmp_path)) as opened:
        yield opened


def environment(database_url: URL, home: Path) -> dict[str, str]:
    """The variables with which a process finds the test's own things."""
    return {
        "DATABASE_URL": database_url.set(drivername="postgresql").render_as_string(hide_password=False),
        "CREDENTIALS_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "CLINIKO_REQUESTS_PER_MINUTE": "100000",
        "CLINIKO_PIPELINE_HOME": str(home),
        "CLINIKO_ALLOWED_HOSTS": f"127.0.0.1:{free_port()}",
    }


def free_port() -> int:
    """A port for a server that is started later."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _database(server_url: URL, template: str) -> Iterator[URL]:
    name = f"test_{uuid4().hex}"
    _administer(server_url, f"create database {name} template {template} encoding 'UTF8'")
    yield server_url.set(database=name)
    _administer(server_url, f"drop database {name} with (force)")


def _administer(server_url: URL, statement: str) -> None:
    engine = sa.create_engine(server_url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()
