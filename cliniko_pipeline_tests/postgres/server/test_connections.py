"""Tests of the settings of every connection, and of connections that are refused."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError, DatabaseUnavailableError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.poolers import pooler

Open = Callable[[URL], Database]

SETTINGS = {
    "datestyle": "SQL, DMY",
    "intervalstyle": "sql_standard",
    "timezone": "Australia/Sydney",
    "standard_conforming_strings": "off",
    "default_transaction_isolation": "serializable",
}


@pytest.fixture
def opened() -> Iterator[Open]:
    with ExitStack() as stack:

        def open_database(url: URL) -> Database:
            database = Database(url)
            stack.callback(database.close)
            return database

        yield open_database


def test_session_settings_of_the_database_do_not_reach_the_pipeline(database_url: URL, opened: Open) -> None:
    """This also holds for reused connections."""
    for name, value in SETTINGS.items():
        administer(database_url, f"alter database {database_url.database} set {name} = '{value}'")
    database = opened(database_url)
    for _ in range(2):
        with database.operator_statement() as connection:
            assert connection.execute(sa.text("select now()")).scalar_one().utcoffset().total_seconds() == 0
        with database.operator() as connection:
            found = [connection.execute(sa.text(f"show {name}")).scalar_one() for name in SETTINGS]
            assert found == ["ISO, MDY", "postgres", "UTC", "on", "read committed"]
            assert connection.execute(sa.text("show transaction_isolation")).scalar_one() == "read committed"


def test_session_without_triggers_is_refused(database_url: URL, opened: Open) -> None:
    administer(database_url, f"alter database {database_url.database} set session_replication_role = 'replica'")
    with pytest.raises(DatabaseSetupError, match="session_replication_role is replica"):
        opened(database_url).operator().__enter__()
    administer(database_url, f"alter database {database_url.database} reset session_replication_role")
    with opened(database_url).operator() as connection:
        assert connection.execute(sa.text("select 1")).scalar_one() == 1


def test_pooler_in_transaction_mode_is_refused(database_url: URL, opened: Open) -> None:
    """The pooler is refused before anything is set on a session that other clients also use."""
    with (
        pooler(database_url, mode="transaction") as url,
        pytest.raises(DatabaseSetupError, match="session mode or a direct connection"),
    ):
        opened(url).operator().__enter__()


def test_pooler_in_session_mode_is_accepted(database_url: URL, opened: Open) -> None:
    with pooler(database_url) as url, opened(url).organization("a") as connection:
        assert connection.execute(sa.text("select current_setting('app.organization_id')")).scalar_one() == "a"


def test_read_only_database_is_transient_and_heals(database_url: URL, opened: Open) -> None:
    database = opened(database_url)
    name = database_url.database
    write = sa.text("comment on schema public is 'written'")
    administer(database_url, f"alter database {name} set default_transaction_read_only = on")
    with pytest.raises(DatabaseUnavailableError, match="is read-only at present"), database.operator() as connection:
        connection.execute(write)
    administer(database_url.set(database="postgres"), f"alter database {name} reset default_transaction_read_only")
    with database.operator() as connection:
        connection.execute(write)
