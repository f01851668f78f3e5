"""Run liveness: a run has lost its process when nobody holds its mark any more."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from cliniko_pipeline.orchestration.run_marks import CODE_SERVER_TAG, has_lost_its_process, marked_within
from cliniko_pipeline.orchestration.runs import ABANDONED
from cliniko_pipeline.orchestration.sensors import lost_runs
from cliniko_pipeline_tests.support.deployments import Deployment
from cliniko_pipeline_tests.support.environments import environment

HERE = json.dumps({"host": "localhost", "socket": "/tmp/of-the-code-server"})
ELSEWHERE = json.dumps({"host": "code-server", "port": 4000})
OTHERS = (ELSEWHERE, None, "unreadable")
MINUTES = [timedelta(minutes=minutes) for minutes in (0, 1, 3, 60 * 24)]

DIES_IN_A_RUN = """
import os, signal, sys
from cliniko_pipeline.orchestration.run_marks import marked_within
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings
with open_runtime(load_settings()) as runtime, marked_within(runtime, sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def add_run(deployment: Deployment, launched: str | None) -> dg.DagsterRun:
    tags = {"dagster/partition": "alpha"} | ({} if launched is None else {CODE_SERVER_TAG: launched})
    return deployment.add_run(dg.DagsterRunStatus.STARTED, tags)


def lost(deployment: Deployment, run: dg.DagsterRun) -> list[bool]:
    """Return whether the run has lost its process, as seen after each of MINUTES."""
    (record,) = deployment.instance.get_run_records(dg.RunsFilter(run_ids=[run.run_id]))
    now = datetime.now(UTC)
    return [has_lost_its_process(deployment.pipeline.runtime, record, now + wait) for wait in MINUTES]


def test_marked_run_is_alive_and_unmarked_lost_after_two_minutes(deployment: Deployment) -> None:
    runtime = deployment.pipeline.runtime
    run = add_run(deployment, HERE)
    with marked_within(runtime, run.run_id):
        assert lost(deployment, run) == [False, False, False, False]
    assert lost(deployment, run) == [False, False, True, True]
    deployment.evaluate(lost_runs)
    marks = runtime.settings.dagster_home / "run_marks"
    assert [mark.name for mark in marks.glob("*")] == [run.run_id]
    deployment.instance.report_run_failed(run)
    deployment.evaluate(lost_runs)
    assert not list(marks.glob("*")), "marks of ended runs are removed"


def test_run_of_a_killed_process_is_ended_by_the_sensor(deployment: Deployment, tmp_path: Path) -> None:
    """The mark was on this machine, wherever the run was launched."""
    run = add_run(deployment, ELSEWHERE)
    home = {"DAGSTER_HOME": str(deployment.pipeline.runtime.settings.dagster_home)}
    variables = environment(deployment.database.url, tmp_path) | home
    ended = subprocess.run([sys.executable, "-c", DIES_IN_A_RUN, run.run_id], env=os.environ | variables, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert all(lost(deployment, run))
    deployment.evaluate(lost_runs)
    found = deployment.instance.get_run_by_id(run.run_id)
    assert found is not None
    assert found.status == dg.DagsterRunStatus.FAILURE
    assert any(ABANDONED in event.message for event in deployment.instance.all_logs(run.run_id))


def test_never_marked_run_of_this_machine_is_lost(deployment: Deployment) -> None:
    for launched, is_lost in ((HERE, [False, False, True, True]), *((each, [False] * 4) for each in OTHERS)):
        assert lost(deployment, add_run(deployment, launched)) == is_lost
