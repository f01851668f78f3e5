"""Databases for the tests of stored data, migrated by a superuser or by an ordinary owner."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from uuid import uuid4

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.server.embedded import EmbeddedServer
from cliniko_pipeline_tests.support.budget_simulations import MovableClock, movable_database
from cliniko_pipeline_tests.support.databases import administer, created_database
from cliniko_pipeline_tests.support.servers import chosen_programs, debian_programs, running_server


@pytest.fixture(scope="session")
def fresh_server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    """Yield a server on which no pipeline was ever set up, so that it has no organization role."""
    with EmbeddedServer(tmp_path_factory.mktemp("fresh")) as server:
        yield server.url


@pytest.fixture(scope="session")
def debian_server_url() -> Iterator[URL]:
    """Yield Debian's server, or the server of CLINIKO_TEST_POSTGRESQL. Unlike the embedded server, it has ICU."""
    programs = chosen_programs() or debian_programs()
    if programs is None:
        pytest.skip("ICU locales need Debian's PostgreSQL server: make debian-postgresql")
    with running_server(programs) as server:
        yield server.url


@pytest.fixture(params=["fresh_server_url", "debian_server_url"], ids=["embedded", "debian"])
def server(request: pytest.FixtureRequest) -> URL:
    """Return servers of two versions. From version 16 on, CREATEROLE alone makes nobody a member of other roles."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def owner_database(fresh_server_url: URL) -> Iterator[Database]:
    """Yield a migrated database. Its owner is not a superuser, and may only create roles and databases."""
    password = uuid4().hex
    administer(
        fresh_server_url,
        f"create role clinic_owner login createrole createdb password '{password}'",
        "create database clinic owner clinic_owner",
    )
    database = Database(fresh_server_url.set(username="clinic_owner", password=password, database="clinic"))
    schema.migrate(database, create_application_tables=True)
    yield database
    database.close()


@pytest.fixture
def make_database(server_url: URL) -> Iterator[Callable[[str], URL]]:
    """Return a function that makes empty databases with options such as `encoding 'SQL_ASCII'`."""
    with ExitStack() as stack:

        def make(options: str) -> URL:
            return stack.enter_context(created_database(server_url, "template0", options))

        yield make


@pytest.fixture(scope="module")
def clock_database(server_url: URL, template: str) -> Iterator[Database]:
    """Yield a database whose clock the tests move."""
    with created_database(server_url, template) as url, movable_database(url) as database:
        yield database


@pytest.fixture
def clock(clock_database: Database) -> MovableClock:
    """Return the clock of `clock_database`, set to its start."""
    return MovableClock(clock_database)
