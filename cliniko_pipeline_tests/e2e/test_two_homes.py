"""Tests of two Dagster homes on one database. Live runs are left alone, and abandoned runs are ended."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from cliniko_pipeline_tests.support.accounts import held
from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.processes import CommandLine, workers_of
from cliniko_pipeline_tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

AS_OF = ("--as-of", "2026-06-15T09:30:00Z")
AGE = "update cliniko.run_heartbeats set beat_at = beat_at - interval '1 hour', doubted_at = now() - interval '1 hour'"

HEARD_OF = "select 1 from cliniko.run_heartbeats where doubted_at is null"


def execute(clinics: Clinics, statement: str) -> None:
    with clinics.database.operator() as connection:
        connection.exec_driver_sql(statement)


def second_home(command: CommandLine) -> CommandLine:
    home = command.folder / "second"
    return CommandLine({**command.environ, "CLINIKO_PIPELINE_HOME": str(home)}, command.folder)


def test_second_home_leaves_a_live_run_alone(command: CommandLine, clinics: Clinics) -> None:
    account = clinics.add("alpha")
    with held(account) as hold, command.start("sync", "alpha", *AS_OF) as first:
        wait_until(hold.reached.is_set, "the sync reads nothing")
        execute(clinics, AGE)
        wait_until(
            lambda: clinics.rows("select 1 from cliniko.run_heartbeats where doubted_at is null"),
            "the run is not heard of",
        )
        with second_home(command).start("sync", "alpha", *AS_OF) as second:
            wait_until(lambda: len(clinics.dagster_runs("alpha")) == 2, "the second sync does not begin")
            hold.release()
            assert (first.wait(120), second.wait(120)) == (0, 0), first.output + second.output
    assert clinics.dagster_runs("alpha") == ["SUCCESS", "SUCCESS"]
    assert clinics.run_states("alpha") == [("succeeded", None), ("succeeded", None)]


def test_run_whose_home_is_gone_is_taken_over(command: CommandLine, clinics: Clinics, home: Path) -> None:
    account = clinics.add("alpha")
    with held(account) as hold, command.start("sync", "alpha", *AS_OF) as running:
        wait_until(hold.reached.is_set, "the sync reads nothing")
        running.interrupt(signal.SIGKILL)
        for worker in workers_of(home):
            os.kill(worker, signal.SIGKILL)
        running.wait(60)
    wait_until(lambda: not workers_of(home), "the worker lives")
    shutil.rmtree(home)
    # The run looks like a run of another machine, so only its missing heartbeats show that it has ended.
    execute(clinics, AGE + ", process = 'elsewhere 1 1'")
    assert second_home(command)("sync", "alpha", *AS_OF).returncode == 0
    assert clinics.dagster_runs("alpha") == ["FAILURE", "SUCCESS"]
    (killed, _), (succeeded, _) = clinics.run_states("alpha")
    assert (killed, succeeded) == ("failed", "succeeded")
    assert clinics.active("alpha") == 1
