"""Tests of run liveness with two Dagster homes on one database. The database's stored times replace waiting."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.definitions import build_definitions
from cliniko_pipeline.orchestration.instance.home import STORAGE_VARIABLE, open_instance
from cliniko_pipeline.orchestration.runs.in_process import end_abandoned_runs
from cliniko_pipeline.orchestration.runs.liveness import SECONDS_BETWEEN_BEATS
from cliniko_pipeline.orchestration.sensors import lost_runs
from cliniko_pipeline.postgres.operator_tables import run_heartbeats
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.environments import environment

TWO_MINUTES = 120
STEP = 5
LOOP_OF_DAGSTERS_DAEMON = 5
"""Dagster's daemon looks every five seconds for sensors that are due."""

LET_PASS = """
update cliniko.run_heartbeats
set beat_at = beat_at - cast(:time as interval), doubted_at = doubted_at - cast(:time as interval)
"""


@dataclass(frozen=True)
class Home:
    """A Dagster home, as the processes of one machine have it."""

    folder: Path
    runtime: Runtime
    instance: dg.DagsterInstance

    def add_run(self, organization_id: str) -> dg.DagsterRun:
        """Store a started run, which a process of a third machine executes."""
        job = build_definitions(runtime=self.runtime).resolve_job_def("cliniko_sync")
        tags = {"dagster/partition": organization_id}
        run = self.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags)
        self.beat(run)
        return run

    def beat(self, run: dg.DagsterRun) -> None:
        with self.runtime.database.operator() as connection:
            run_heartbeats.note_heartbeat(connection, run.run_id, f"elsewhere {run.run_id} 1")

    def let_pass(self, time: timedelta) -> None:
        with self.runtime.database.operator() as connection:
            connection.execute(sa.text(LET_PASS), {"time": time})

    def status(self, run: dg.DagsterRun) -> str:
        found = self.instance.get_run_by_id(run.run_id)
        assert found is not None
        return found.status.value


def by_sensor(home: Home) -> None:
    lost_runs.evaluate_tick(dg.build_sensor_context(instance=home.instance, resources={"runtime": home.runtime}))


def by_command(home: Home) -> None:
    end_abandoned_runs(home.instance, home.runtime, "alpha")


@pytest.fixture
def homes(database_url: URL, tmp_path: Path) -> Iterator[tuple[Home, Home]]:
    with ExitStack() as stack, pytest.MonkeyPatch.context() as variables:
        for name in ("DAGSTER_HOME", STORAGE_VARIABLE):
            variables.setenv(name, "")

        def opened(folder: Path) -> Home:
            runtime = stack.enter_context(open_runtime(load_settings(environment(database_url, folder))))
            return Home(folder, runtime, stack.enter_context(open_instance(runtime)))

        yield opened(tmp_path / "first"), opened(tmp_path / "second")


@pytest.mark.parametrize("ask", [by_sensor, by_command])
def test_only_the_dead_run_is_taken_over_in_two_minutes(homes: tuple[Home, Home], ask: Callable[[Home], None]) -> None:
    """The home of both runs is gone. Ticks are as late as they can be, and begin at any time after the last beat."""
    first, second = homes
    seconds_between_ticks = (lost_runs.minimum_interval_seconds or 0) + LOOP_OF_DAGSTERS_DAEMON
    shutil.rmtree(first.folder)
    for begin in range(0, seconds_between_ticks, STEP):
        dead, live = first.add_run("alpha"), first.add_run("alpha")
        for seconds_since_beat in range(STEP, TWO_MINUTES, STEP):
            first.let_pass(timedelta(seconds=STEP))
            if seconds_since_beat % SECONDS_BETWEEN_BEATS == 0:
                first.beat(live)
            if seconds_since_beat % seconds_between_ticks == begin:
                ask(second)
        assert (second.status(dead), second.status(live)) == ("FAILURE", "STARTED")


def test_run_that_waits_for_its_process_is_left_alone(homes: tuple[Home, Home]) -> None:
    """A run in the queue of a broker has no process that could send heartbeats."""
    first, second = homes
    job = build_definitions(runtime=first.runtime).resolve_job_def("cliniko_sync")
    tags = {"dagster/partition": "alpha"}
    run = first.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTING, tags=tags)
    for _ in range(5):
        by_sensor(second)
        first.let_pass(timedelta(minutes=5))
    assert second.status(run) == "STARTING"


def test_run_that_never_starts_is_ended_in_two_minutes(homes: tuple[Home, Home]) -> None:
    """Dagster's run monitoring ends it."""
    instance = homes[1].instance
    assert instance.run_monitoring_enabled
    assert instance.run_monitoring_start_timeout_seconds + instance.run_monitoring_poll_interval_seconds < TWO_MINUTES
    assert not instance.run_launcher.supports_check_run_worker_health  # it would fail the runs of other homes
