"""Tests of Dagster's storage over pooled connections, with a real instance and a real PostgreSQL."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.orchestration.instance.home import open_instance
from cliniko_pipeline.orchestration.pooled_storage import CONNECTIONS_KEPT
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.databases import created_database
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.waiting import wait_until

OF_DAGSTER = "select pid from pg_stat_activity where datname = current_database() and application_name = ''"
"""Query for the server processes of Dagster's connections. The pipeline's connections have an application name."""


@pytest.fixture(scope="module")
def runtime(server_url: URL, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with (
        created_database(server_url, template) as url,
        pytest.MonkeyPatch.context() as variables,
        open_runtime(load_settings(environment(url, tmp_path_factory.mktemp("storage")))) as opened,
    ):
        for name in ("DAGSTER_HOME", "CLINIKO_DAGSTER_DATABASE_URL"):
            # Opening an instance sets these variables, so they are set here to be restored after the test.
            variables.setenv(name, "")
        yield opened


@pytest.fixture
def instance(runtime: Runtime) -> Iterator[dg.DagsterInstance]:
    wait_for_connections(runtime, range(1))
    with open_instance(runtime) as opened:
        yield opened


def connections(runtime: Runtime) -> set[int]:
    with runtime.database.operator() as connection:
        return set(connection.execute(sa.text(OF_DAGSTER)).scalars())


def wait_for_connections(runtime: Runtime, number: range) -> None:
    """Wait until the server has ended all closed connections."""
    wait_until(
        lambda: len(connections(runtime)) in number,
        lambda: f"{len(connections(runtime))} connections, not {number.start} to {number.stop - 1}",
    )


def use(instance: dg.DagsterInstance) -> None:
    """Send a statement to each of the three storages."""
    assert instance.get_runs() == []
    assert instance.get_dynamic_partitions("organizations") == []
    assert list(instance.all_instigator_state()) == []


def test_successive_statements_share_one_connection(runtime: Runtime) -> None:
    """This also holds for the instance that a Dagster process opens. A closed instance leaves no connection."""
    wait_for_connections(runtime, range(1))
    with open_instance(runtime) as instance:
        assert_one_connection(runtime, instance)
        ref = instance.get_ref()
    wait_for_connections(runtime, range(1))
    with dg.DagsterInstance.from_ref(ref) as theirs:
        assert_one_connection(runtime, theirs)


def assert_one_connection(runtime: Runtime, instance: dg.DagsterInstance) -> None:
    use(instance)
    wait_for_connections(runtime, range(2))
    first = connections(runtime)
    for _ in range(10):
        use(instance)
    assert len(first) == 1
    assert connections(runtime) == first


def test_connection_closed_by_the_server_is_replaced(runtime: Runtime, instance: dg.DagsterInstance) -> None:
    use(instance)
    closed = connections(runtime)
    terminate = sa.text("select pg_terminate_backend(pid) from unnest(:pids) as pid")
    with runtime.database.operator() as connection:
        connection.execute(terminate, {"pids": list(closed)})
    use(instance)
    assert closed.isdisjoint(connections(runtime))


def test_concurrent_connections_are_closed_but_for_a_few(runtime: Runtime, instance: dg.DagsterInstance) -> None:
    threads = CONNECTIONS_KEPT + 10
    all_there = threading.Barrier(threads, timeout=60)
    storage = instance.run_storage
    assert isinstance(storage, dg._core.storage.runs.SqlRunStorage)

    def hold(_number: int) -> int:
        with storage.connect() as connection:
            all_there.wait()
            return connection.execute(sa.text("select pg_backend_pid()")).scalar_one()

    with ThreadPoolExecutor(threads) as executor:
        assert len(set(executor.map(hold, range(threads)))) == threads
    wait_for_connections(runtime, range(1, CONNECTIONS_KEPT + 1))
