"""Tests of the organization lock, `Database.turn`. Only one run at a time writes an organization's data."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from cliniko_pipeline.errors import DatabaseUnavailableError
from cliniko_pipeline.postgres import engine
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.locks import HELD, holds_a_lock, waits_for_a_lock
from cliniko_pipeline_tests.support.waiting import LIMIT_SECONDS, wait_until


@pytest.fixture
def database(module_database: Database) -> Database:
    return module_database


def test_organization_lock_waits_for_its_own_holder_only(database: Database) -> None:
    def wait() -> None:
        with database.organization_lock("a"):
            pass

    with ThreadPoolExecutor(1) as thread:
        with database.organization_lock("a"):
            waiting = thread.submit(wait)
            wait_until(lambda: waits_for_a_lock(database), "nobody waits for the lock")
            with database.organization_lock("b"):
                assert not waiting.done()
        waiting.result(LIMIT_SECONDS)
    assert not holds_a_lock(database)


def test_organization_lock_ends_with_its_connection(database: Database) -> None:
    with database.organization_lock("a") as require_lock:
        require_lock()
        administer(database.url, f"select pg_terminate_backend(pid, 5000) {HELD}")
        with pytest.raises(DatabaseUnavailableError, match="holds the lock of organization 'a' was lost"):
            require_lock()
        with database.organization_lock("a"):
            pass


def test_organization_lock_timeout_is_reported(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LOCK_TIMEOUT_SECONDS", 0.05)
    with (
        database.organization_lock("a"),
        pytest.raises(DatabaseUnavailableError, match="Another run has been writing organization 'a'"),
        database.organization_lock("a"),
    ):
        pytest.fail("both hold the lock")
