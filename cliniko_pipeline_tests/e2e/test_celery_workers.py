"""Tests of syncs on Celery workers of this machine, with a real Redis."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cliniko_pipeline.orchestration.instance.home import STORAGE_VARIABLE, open_instance
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.accounts import held
from cliniko_pipeline_tests.support.brokers import Broker, running_broker, send_runs_to_workers
from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.processes import CommandLine, Running, children_of
from cliniko_pipeline_tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

PROCESSES = """
select substring(event from 'Started process for run \\(pid: (\\d+)\\)')::integer from dagster.event_logs
where strpos(event, 'Started process for run (pid: ') > 0 order by id
"""
UNFINISHED = "select run_id from dagster.runs where status = 'STARTED'"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with running_broker(tmp_path / "redis") as broker:
        yield broker


@pytest.fixture
def environ(environ: dict[str, str], home: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name in ("DAGSTER_HOME", STORAGE_VARIABLE):
        monkeypatch.setenv(name, "")  # so that they are restored after the test, because opening an instance sets them
    monkeypatch.setenv("CLINIKO_REDIS_URL", broker.url)
    send_runs_to_workers(home / "dagster")
    # The schedule is daily, so a sync is repeated here only because it has failed.
    once = {"CLINIKO_SYNC_EVERY_MINUTES": "1440", "CLINIKO_FULL_SYNC_AT": "off"}
    return environ | once | {"CLINIKO_REDIS_URL": broker.url}


@contextmanager
def started_worker(command: CommandLine) -> Iterator[Running]:
    with command.start("worker", "--concurrency", "1") as running:
        try:
            yield running
        finally:
            if running.process.poll() is None:
                running.process.terminate()
                assert running.wait(60) == 0, running.output


def cancel(environ: dict[str, str], run_id: str) -> None:
    """Cancel the run as the Dagster UI does."""
    with open_runtime(load_settings(environ)) as runtime, open_instance(runtime) as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        instance.report_run_canceling(run)
        assert instance.run_launcher.terminate(run_id)


def backfill(command: CommandLine, *arguments: str) -> None:
    done = command("backfill", *arguments, seconds=240)
    assert done.returncode == 0, done.stderr


def wait_for_runs(clinics: Clinics, name: str, *statuses: str) -> None:
    wait_until(
        lambda: clinics.dagster_runs(name) == list(statuses),
        lambda: f"the runs of {name} are {clinics.dagster_runs(name)}",
        240,
    )


def test_worker_process_executes_runs_and_cancellations(
    command: CommandLine, clinics: Clinics, environ: dict[str, str], broker: Broker
) -> None:
    """One process executes all runs, so it imports Dagster once. A canceled run and a stopped worker end in order.

    The broker is restarted between the runs.
    """
    command.environ["CLINIKO_SYNC_EVERY_MINUTES"] = "0"
    clinics.open(["alpha", "beta"])
    backfill(command, "--all")
    with started_worker(command), command.started_ui():
        wait_for_runs(clinics, "alpha", "SUCCESS")
        wait_for_runs(clinics, "beta", "SUCCESS")
        broker.stop()
        broker.start()
        with held(clinics.add("gamma")) as hold:
            backfill(command, "gamma")
            wait_until(hold.reached.is_set, "the sync reads nothing", 120)
            ((run_id,),) = clinics.rows(UNFINISHED)
            cancel(environ, run_id)
            wait_for_runs(clinics, "gamma", "CANCELED")
        backfill(command, "gamma")
        wait_for_runs(clinics, "gamma", "CANCELED", "SUCCESS")
    assert [clinics.count(name, "cliniko.contact_mapping") for name in ("alpha", "beta", "gamma")] == [2, 2, 2]
    processes = [process for (process,) in clinics.rows(PROCESSES)]
    assert (len(processes), len(set(processes))) == (4, 1)


def test_run_of_a_killed_worker_is_repeated(command: CommandLine, clinics: Clinics, broker: Broker) -> None:
    """The broker is restarted, too, while the run waits for another worker."""
    account = clinics.add("alpha")
    backfill(command, "alpha")
    with command.started_ui():
        with held(account) as hold, started_worker(command) as killed:
            wait_until(hold.reached.is_set, "the sync reads nothing", 120)
            for process in [killed.process.pid, *children_of(killed.process.pid)]:
                os.kill(process, signal.SIGKILL)
            killed.wait(60)
        wait_for_runs(clinics, "alpha", "FAILURE", "STARTING")
        broker.stop()
        broker.start()
        with started_worker(command):
            wait_for_runs(clinics, "alpha", "FAILURE", "SUCCESS")
    assert clinics.count("alpha", "cliniko.contact_mapping") == 2
