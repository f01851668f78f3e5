"""Fixtures for all tests, with a real PostgreSQL and a separate database for each pipeline.

CLINIKO_TEST_DATABASE_URL may be the URL of a superuser of another server, which the tests then use.
CLINIKO_TEST_POSTGRESQL may be a folder with initdb, pg_ctl and postgres, so that the tests start servers of that
version.
"""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import is_hypothesis_test
from sqlalchemy.engine import URL, make_url

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.server.embedded import EmbeddedServer
from cliniko_pipeline_tests.support.clinics import Clinics, opened_clinics
from cliniko_pipeline_tests.support.databases import administer, created_database
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, opened_pipeline
from cliniko_pipeline_tests.support.processes import CommandLine
from cliniko_pipeline_tests.support.properties import THOROUGH
from cliniko_pipeline_tests.support.servers import chosen_programs, running_server

OWN_FOLDER = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    # Each session has its own folder. A pytest that starts closes the shared folder to the account that root gives to
    # embedded servers, even to servers of other sessions.
    if config.option.basetemp is None:
        config.option.basetemp = config.stash[OWN_FOLDER] = mkdtemp(prefix="cliniko-tests-")
    # A shell starts background commands with Ctrl-C ignored, which the commands under test would inherit.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure(config: pytest.Config) -> None:
    if OWN_FOLDER in config.stash:
        shutil.rmtree(config.stash[OWN_FOLDER], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # With many examples, a property test belongs to the slow tests.
    for item in items:
        if THOROUGH and is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    given = os.environ.get("CLINIKO_TEST_DATABASE_URL")
    if given:
        yield make_url(given)
        return
    if programs := chosen_programs():
        with running_server(programs) as server:
            yield server.url
        return
    with EmbeddedServer(tmp_path_factory.mktemp("server") / "postgres") as server:
        # The data need not survive a crash of the machine, so commits do not wait for the disk.
        relaxed = [f"alter system set {each} = off" for each in ("fsync", "full_page_writes")]
        administer(server.url, *relaxed, "select pg_reload_conf()")
        yield server.url


@pytest.fixture(scope="session")
def template(server_url: URL) -> Iterator[str]:
    """Yield the name of a migrated database with the application's tables, for copies."""
    with created_database(server_url) as url:
        database = Database(url)
        schema.migrate(database, create_application_tables=True)
        database.close()
        assert url.database is not None
        yield url.database


@pytest.fixture
def empty_database_url(server_url: URL) -> Iterator[URL]:
    """Yield the URL of an empty database."""
    with created_database(server_url) as url:
        yield url


@pytest.fixture
def database_url(server_url: URL, template: str) -> Iterator[URL]:
    """Yield the URL of a migrated database with empty tables of the application."""
    with created_database(server_url, template) as url:
        yield url


@pytest.fixture(scope="module")
def module_database(server_url: URL, template: str) -> Iterator[Database]:
    """Yield a migrated database that the tests of a module share."""
    with created_database(server_url, template) as url:
        database = Database(url)
        yield database
        database.close()


@pytest.fixture
def database(database_url: URL) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def environ(database_url: URL, home: Path) -> dict[str, str]:
    """Return the variables of a pipeline on the test's database."""
    return environment(database_url, home)


@pytest.fixture
def pipeline(database_url: URL, tmp_path: Path) -> Iterator[PipelineUnderTest]:
    with opened_pipeline(environment(database_url, tmp_path)) as opened:
        yield opened


@pytest.fixture
def command(environ: dict[str, str], tmp_path: Path) -> CommandLine:
    return CommandLine(environ, tmp_path)


@pytest.fixture
def clinics(environ: dict[str, str]) -> Iterator[Clinics]:
    with opened_clinics(environ) as opened:
        yield opened
