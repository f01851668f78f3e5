"""Dagster's storage over connections that are used again: on a real instance and a real PostgreSQL."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.orchestration.instance import open_instance
from cliniko_pipeline.orchestration.pooled_storage import CONNECTIONS_KEPT
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.environments import environment

OF_DAGSTER = "select pid from pg_stat_activity where datname = current_database() and application_name = ''"
"""The numbers of the server's processes that serve Dagster's connections; ours have a name."""


@pytest.fixture
def runtime(database_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    environ = environment(database_url, tmp_path)
    for name in ("DAGSTER_HOME", "CLINIKO_DAGSTER_DATABASE_URL"):
        # Opening an instance sets them; put back what was there.
        monkeypatch.setenv(name, "")
    with open_runtime(load_settings(environ)) as opened:
        yield opened


@pytest.fixture
def instance(runtime: Runtime) -> Iterator[dg.DagsterInstance]:
    with open_instance(runtime) as opened:
        yield opened


def connections(runtime: Runtime) -> set[int]:
    with runtime.database.operator() as connection:
        return set(connection.execute(sa.text(OF_DAGSTER)).scalars())


def settled(runtime: Runtime, number: range) -> bool:
    """Whether there are so many, once the server has ended what was closed."""
    deadline = time.monotonic() + 5
    while len(connections(runtime)) not in number and time.monotonic() < deadline:
        time.sleep(0.02)
    return len(connections(runtime)) in number


def use(instance: dg.DagsterInstance) -> None:
    """A statement for each of the three storages."""
    assert instance.get_runs() == []
    assert instance.get_dynamic_partitions("organizations") == []
    assert list(instance.all_instigator_state()) == []


def test_what_dagster_asks_for_one_after_the_other_goes_over_one_connection(
    runtime: Runtime, instance: dg.DagsterInstance
) -> None:
    use(instance)
    assert settled(runtime, range(2))
    first = connections(runtime)
    for _ in range(10):
        use(instance)
    assert len(first) == 1
    assert connections(runtime) == first


def test_connections_that_the_server_has_closed_are_replaced(runtime: Runtime, instance: dg.DagsterInstance) -> None:
    use(instance)
    closed = connections(runtime)
    with runtime.database.operator() as connection:
        connection.execute(
            sa.text("select pg_terminate_backend(pid) from unnest(:pids) as pid"), {"pids": list(closed)}
        )
    use(instance)
    assert closed.isdisjoint(connections(runtime))


def test_as_many_as_are_wanted_at_once_are_opened_and_few_are_kept(
    runtime: Runtime, instance: dg.DagsterInstance
) -> None:
    threads = CONNECTIONS_KEPT + 10
    all_there = threading.Barrier(threads, timeout=30)
    storage = instance.run_storage
    assert isinstance(storage, dg._core.storage.runs.SqlRunStorage)

    def hold(_number: int) -> int:
        with storage.connect() as connection:
            all_there.wait()
            return connection.execute(sa.text("select pg_backend_pid()")).scalar_one()

    with ThreadPoolExecutor(threads) as executor:
        assert len(set(executor.map(hold, range(threads)))) == threads
    assert settled(runtime, range(1, CONNECTIONS_KEPT + 1))


def test_an_instance_that_is_closed_leaves_no_connection(runtime: Runtime) -> None:
    with open_instance(runtime) as instance:
        use(instance)
        assert connections(runtime)
    assert settled(runtime, range(1))


def test_processes_that_dagster_starts_use_theirs_again_too(runtime: Runtime, instance: dg.DagsterInstance) -> None:
    with dg.DagsterInstance.from_ref(instance.get_ref()) as theirs:
        use(theirs)
        assert settled(runtime, range(2))
        first = connections(runtime)
        use(theirs)
        assert len(first) == 1
        assert connections(runtime) == first
