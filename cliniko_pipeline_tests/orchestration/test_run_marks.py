"""Which runs have lost their process: told by the locks that processes hold, which end however they do."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.orchestration.run_marks import CODE_SERVER_TAG, has_lost_its_process, marked_within
from cliniko_pipeline.orchestration.runs import ABANDONED
from cliniko_pipeline.orchestration.sensors import lost_runs
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, opened_pipeline

HERE = json.dumps({"host": "localhost", "socket": "/tmp/of-the-code-server"})
ELSEWHERE = json.dumps({"host": "code-server", "port": 4000})
MINUTES = [timedelta(minutes=minutes) for minutes in (0, 1, 3, 60 * 24)]

DIES_IN_A_RUN = """
import os, signal, sys
from cliniko_pipeline.orchestration.run_marks import marked_within
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings
with open_runtime(load_settings()) as runtime, marked_within(runtime, sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Daemon:
    """An instance on which runs go on, and what of the daemon looks after them."""

    def __init__(self, pipeline: PipelineUnderTest) -> None:
        self.pipeline = pipeline
        self.marks = pipeline.runtime.settings.dagster_home / "run_marks"

    def run(self, launched: str | None, status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED) -> str:
        tags = {"dagster/partition": "alpha"} | ({} if launched is None else {CODE_SERVER_TAG: launched})
        job = self.pipeline.definitions.resolve_job_def("cliniko_sync")
        return self.pipeline.instance.create_run_for_job(job, run_id=str(uuid4()), status=status, tags=tags).run_id

    def lost(self, run_id: str) -> list[bool]:
        """Whether it has lost its process, as it looks after each of MINUTES."""
        (record,) = self.pipeline.instance.get_run_records(dg.RunsFilter(run_ids=[run_id]))
        now = datetime.now(UTC)
        return [has_lost_its_process(self.pipeline.runtime, record, now + wait) for wait in MINUTES]

    def look(self) -> None:
        """The sensor's tick."""
        resources = {"runtime": self.pipeline.runtime}
        lost_runs.evaluate_tick(dg.build_sensor_context(instance=self.pipeline.instance, resources=resources))


@pytest.fixture
def daemon(database_url: URL, tmp_path: Path) -> Iterator[Daemon]:
    with (
        dg.instance_for_test() as instance,
        opened_pipeline(environment(database_url, tmp_path), instance=instance) as pipeline,
    ):
        yield Daemon(pipeline)


def test_a_run_goes_on_while_it_is_marked_and_then_has_two_minutes_to_tell_its_end(daemon: Daemon) -> None:
    run_id = daemon.run(HERE)
    with marked_within(daemon.pipeline.runtime, run_id):
        assert daemon.lost(run_id) == [False, False, False, False]
    assert daemon.lost(run_id) == [False, False, True, True]
    daemon.look()
    assert [mark.name for mark in daemon.marks.glob("*")] == [run_id]
    run = daemon.pipeline.instance.get_run_by_id(run_id)
    assert run is not None
    daemon.pipeline.instance.report_run_failed(run)
    daemon.look()
    assert not list(daemon.marks.glob("*")), "of runs that have ended none is kept"


def test_a_run_whose_process_was_killed_is_ended_at_the_next_look(daemon: Daemon, tmp_path: Path) -> None:
    # Wherever it was launched: it held the mark on this machine.
    run_id = daemon.run(ELSEWHERE)
    home = {"DAGSTER_HOME": str(daemon.marks.parent)}
    variables = environment(daemon.pipeline.database.url, tmp_path) | home
    ended = subprocess.run([sys.executable, "-c", DIES_IN_A_RUN, run_id], env=os.environ | variables, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert all(daemon.lost(run_id))
    daemon.look()
    run = daemon.pipeline.instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status == dg.DagsterRunStatus.FAILURE
    assert any(ABANDONED in event.message for event in daemon.pipeline.instance.all_logs(run_id))


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_a_run_that_was_launched_on_this_machine_and_never_marked_is_lost_after_two_minutes(
    daemon: Daemon, status: dg.DagsterRunStatus
) -> None:
    assert daemon.lost(daemon.run(HERE, status)) == [False, False, True, True]
    # Of others this machine knows nothing.
    for launched in (ELSEWHERE, None, "unreadable"):
        assert daemon.lost(daemon.run(launched, status)) == [False, False, False, False]
