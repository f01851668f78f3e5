"""Tests of the shipped configuration for Celery. e2e/test_celery_workers.py has the tests with workers."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import SettingsError
from cliniko_pipeline.orchestration.celery.worker import worker_application
from cliniko_pipeline.orchestration.instance.home import STORAGE_VARIABLE, open_instance
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.brokers import SHIPPED, send_runs_to_workers
from cliniko_pipeline_tests.support.deployments import NOW, Deployment
from cliniko_pipeline_tests.support.environments import environment

QUEUE = "dagster-celery/queue"


@pytest.fixture
def instance(database_url: URL, tmp_path: Path) -> Iterator[Callable[[], dg.DagsterInstance]]:
    """Yield a function that opens the instance of the test's home."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as variables:
        for name in ("DAGSTER_HOME", STORAGE_VARIABLE):
            variables.setenv(name, "")
        variables.setenv("CLINIKO_REDIS_URL", "redis://127.0.0.1:1/0")

        def opened() -> dg.DagsterInstance:
            runtime = stack.enter_context(open_runtime(load_settings(environment(database_url, tmp_path))))
            return stack.enter_context(open_instance(runtime))

        yield opened


def test_configuration_for_celery_differs_only_where_it_says_so() -> None:
    default: Any = yaml.safe_load((resources.files("cliniko_pipeline") / "orchestration/dagster.yaml").read_text())
    celery: Any = yaml.safe_load((SHIPPED / "dagster.yaml").read_text())
    runs, default_runs = celery["concurrency"]["runs"], default["concurrency"]["runs"]
    assert celery.pop("run_launcher")["class"] == "WorkerRunLauncher"
    assert runs["tag_concurrency_limits"].pop()["key"] == QUEUE
    assert runs.pop("max_concurrent_runs") > default_runs.pop("max_concurrent_runs")
    timeouts = [each["run_monitoring"].pop("start_timeout_seconds") for each in (celery, default)]
    assert timeouts[0] > timeouts[1]
    assert celery == default


def test_run_stays_in_the_broker_until_a_worker_executes_it(
    instance: Callable[[], dg.DagsterInstance], tmp_path: Path
) -> None:
    send_runs_to_workers(tmp_path / "dagster")
    opened = instance()
    configuration = worker_application(opened).conf
    assert configuration.task_acks_late
    assert configuration.worker_prefetch_multiplier == 1
    # A run must not be delivered again while it may still be running.
    longest_run = opened.run_monitoring_max_runtime_seconds
    assert configuration.broker_transport_options["visibility_timeout"] > longest_run
    # Only with run monitoring, Dagster ignores the second delivery of a run.
    assert opened.run_monitoring_enabled
    assert not opened.run_launcher.supports_check_run_worker_health


def test_worker_of_a_home_without_celery_is_refused(instance: Callable[[], dg.DagsterInstance]) -> None:
    with pytest.raises(SettingsError, match=r"copy deploy/celery/dagster\.yaml"):
        worker_application(instance())


def test_first_and_full_syncs_wait_in_a_queue_of_their_own(deployment: Deployment) -> None:
    assert {tags[QUEUE] for tags in deployment.tick().values()} == {"long"}
    for name in ("alpha", "beta"):
        deployment.execute(
            "update cliniko.scheduling set succeeded_at = :before, requested_at = :before,"
            " full_requested_at = case organization_id when 'alpha' then cast(:now as timestamptz) end"
            " where organization_id = :name",
            name=name,
            before=NOW - timedelta(days=2),
            now=NOW,
        )
    tags = deployment.tick()
    assert (QUEUE in tags["alpha"], tags["alpha"]["cliniko_pipeline/full"]) == (False, "false")
    assert (tags["beta"][QUEUE], tags["beta"]["cliniko_pipeline/full"]) == ("long", "true")
