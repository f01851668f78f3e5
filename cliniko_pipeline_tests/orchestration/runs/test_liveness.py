"""Tests of run liveness: a run is lost after some time without heartbeats, or when its process has ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from cliniko_pipeline.orchestration.runs import liveness as run_liveness
from cliniko_pipeline.orchestration.runs.in_process import ABANDONED
from cliniko_pipeline.orchestration.runs.liveness import heartbeats_inside_run, heartbeats_of_run
from cliniko_pipeline.orchestration.sensors import lost_runs
from cliniko_pipeline_tests.support.deployments import Deployment
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.waiting import wait_until

DIES_IN_A_RUN = """
import os, signal, sys
from cliniko_pipeline.orchestration.runs.liveness import heartbeats_inside_run
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings
with open_runtime(load_settings()) as runtime, heartbeats_inside_run(runtime, sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
"""

BEATS = "select 1 from cliniko.run_heartbeats where doubted_at is null and beat_at > now() - interval '1 minute'"


def add_run(deployment: Deployment) -> dg.DagsterRun:
    return deployment.add_run(dg.DagsterRunStatus.STARTED, {"dagster/partition": "alpha"})


def let_pass(deployment: Deployment, time: str) -> None:
    """Move all stored times of runs into the past."""
    deployment.execute(
        "update cliniko.run_heartbeats set beat_at = beat_at - cast(:time as interval),"
        " doubted_at = doubted_at - cast(:time as interval)",
        time=time,
    )


def watch(deployment: Deployment, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    """Evaluate the sensor. Return the status of the run."""
    deployment.evaluate(lost_runs)
    found = deployment.instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status


def known_runs(deployment: Deployment) -> list[str]:
    return deployment.execute("select run_id from cliniko.run_heartbeats")


def test_beating_run_is_alive_for_everybody(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run stays alive even after a long failure of the database, when all heartbeats are old."""
    monkeypatch.setattr(run_liveness, "SECONDS_BETWEEN_BEATS", 0.05)
    run = add_run(deployment)
    for alive in (heartbeats_of_run, heartbeats_inside_run):
        with alive(deployment.pipeline.runtime, run.run_id):
            for _ in range(3):
                let_pass(deployment, "1 hour")
                assert watch(deployment, run) == dg.DagsterRunStatus.STARTED
                wait_until(lambda: deployment.execute(BEATS), "no beat")


def test_silent_run_is_ended_after_minutes(deployment: Deployment) -> None:
    """The process was on another machine, or never sent a heartbeat. Its home may be gone."""
    heard_of, never_heard_of = add_run(deployment), add_run(deployment)
    with heartbeats_inside_run(deployment.pipeline.runtime, heard_of.run_id):
        pass
    for _ in range(2):
        assert watch(deployment, heard_of) == dg.DagsterRunStatus.STARTED
        let_pass(deployment, "1 minute")
    for run in (heard_of, never_heard_of):
        assert watch(deployment, run) == dg.DagsterRunStatus.FAILURE
        assert any(ABANDONED in event.message for event in deployment.instance.all_logs(run.run_id))
    let_pass(deployment, "1 hour")
    deployment.evaluate(lost_runs)
    assert known_runs(deployment) == []


def test_run_of_a_killed_process_is_ended_at_once(deployment: Deployment, tmp_path: Path) -> None:
    """The sensor runs on the same machine, with any home."""
    run = add_run(deployment)
    variables = environment(deployment.database.url, tmp_path / "another home")
    ended = subprocess.run([sys.executable, "-c", DIES_IN_A_RUN, run.run_id], env=os.environ | variables, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert watch(deployment, run) == dg.DagsterRunStatus.FAILURE


def test_run_whose_block_is_interrupted_is_lost_at_once(deployment: Deployment) -> None:
    run = add_run(deployment)
    with pytest.raises(KeyboardInterrupt), heartbeats_of_run(deployment.pipeline.runtime, run.run_id):
        raise KeyboardInterrupt
    assert watch(deployment, run) == dg.DagsterRunStatus.FAILURE
    with heartbeats_of_run(deployment.pipeline.runtime, "ends well"):
        assert "ends well" in known_runs(deployment)
    assert "ends well" not in known_runs(deployment)
