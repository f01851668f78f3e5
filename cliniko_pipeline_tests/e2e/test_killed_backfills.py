"""Test of a backfill during which a worker, the daemon and the database are killed by SIGKILL.

The daemon and the database are started again. Nothing else is done for the recovery.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster._daemon.types import DaemonHeartbeat

from cliniko_pipeline.errors import DatabaseUnavailableError
from cliniko_pipeline.orchestration.instance.home import STORAGE_VARIABLE, open_instance
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.server.embedded import EmbeddedServer
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.processes import CommandLine, processes_of, workers_of
from cliniko_pipeline_tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

NAMES = ["alpha", "beta", "gamma"]
RUNS = """
select organization.value, run.status, run.run_id, exists (
    select from dagster.run_tags as tag where tag.run_id = run.run_id and tag.key = 'dagster/backfill'
)
from dagster.runs as run
join dagster.run_tags as organization on organization.run_id = run.run_id and organization.key = 'dagster/partition'
order by run.id
"""
RECOVERY_SECONDS = 600
"""Time limit for the recovery.

A run that was killed before its start is given up after two minutes, and retried after one more.
"""


@pytest.fixture
def environ(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    for name in ("DAGSTER_HOME", STORAGE_VARIABLE):
        monkeypatch.setenv(name, "")  # so that they are restored after the test, because opening an instance sets them
    with EmbeddedServer(tmp_path / "server") as server:
        database = Database(server.url)
        schema.migrate(database, create_application_tables=True)
        database.close()
        # The schedule is daily, so a sync is repeated here only because it has failed.
        once = {"CLINIKO_SYNC_EVERY_MINUTES": "1440", "CLINIKO_FULL_SYNC_AT": "off"}
        yield environment(server.url, home) | once


def test_backfill_completes_after_kills(
    command: CommandLine, clinics: Clinics, environ: dict[str, str], home: Path
) -> None:
    clinics.open(NAMES)
    clinics.sandbox.faults = Faults(latency_ms=2000)
    # The backfill is launched first, because the daemon looks for backfills at its start and every half minute.
    with open_runtime(load_settings(environ)) as runtime, open_instance(runtime) as instance:
        # This heartbeat outlasts the killed daemon, so that the following command next meets the killed database.
        timestamp = (datetime.now(UTC) + timedelta(hours=1)).timestamp()
        instance.add_daemon_heartbeat(DaemonHeartbeat(timestamp, "test", None))
    with command.start("backfill", "--all", "--follow") as following:
        following.wait_for("0 of 3 done, 3 waiting", 120)
        with command.started_ui() as running:
            workers = running.wait_until(lambda: _half_synced(clinics, home), "no worker stores records", 180)
            worker, killed_name = workers[0]
            os.kill(worker, signal.SIGKILL)
            (daemon,) = (number for number, line in processes_of(home).items() if "dagster._daemon" in line)
            os.kill(daemon, signal.SIGKILL)
            assert running.wait(90) == 1
        assert "Error: Dagster has ended by itself, or was killed." in running.output
        wait_until(lambda: set(processes_of(home)) <= {following.process.pid}, "processes are left")
        _kill_database(command.folder / "server" / "data")
        assert following.wait(90) == 1
    (error,) = (line for line in following.output.splitlines() if line.startswith("Error:"))
    assert "Once it runs, a launched backfill continues." in error
    assert "Traceback" not in following.output

    clinics.sandbox.faults = Faults()
    with EmbeddedServer(command.folder / "server"), command.started_ui() as running:
        running.wait_until(lambda: _is_over(clinics), "the backfill did not complete", RECOVERY_SECONDS)
        heartbeats = "select 1 from cliniko.run_heartbeats"
        wait_until(lambda: not _rows(clinics, heartbeats), "heartbeats of ended runs are left", 300)
        for name in NAMES:
            assert (clinics.count(name, "cliniko.patients"), clinics.count(name, "cliniko.contact_mapping")) == (2, 2)
            assert {"succeeded"} <= {state for state, _ in clinics.run_states(name)} <= {"succeeded", "failed"}
            assert clinics.count(name, "cliniko.crawls where completed_at is null") == 0
            assert clinics.count(name, "cliniko.crawled_ids") == 0
        assert _rows(clinics, "select 1 from pg_locks where locktype = 'advisory'") == []
        assert _rows(clinics, "select 1 from cliniko.scheduling where failures > 0 or retry_at is not null") == []
        runs = _rows(clinics, RUNS)
    # The backfill has one run per organization, even if it was resumed. The schedule repeats failed runs.
    assert sorted(name for name, *_, is_of_backfill in runs if is_of_backfill) == NAMES
    assert (killed_name, "FAILURE", True) in [(name, status, of_backfill) for name, status, _, of_backfill in runs]
    assert all(status == "SUCCESS" for _, status, _, is_of_backfill in runs if not is_of_backfill)


def _half_synced(clinics: Clinics, home: Path) -> list[tuple[int, str]]:
    """Return the workers that have stored a part of their run, each with its organization."""
    runs = {worker: clinics.runs_of_process(worker) for worker in workers_of(home)}
    names = {run_id: name for name, _, run_id, _ in _rows(clinics, RUNS)}
    found = [(worker, names[run_id]) for worker, run_ids in runs.items() for run_id in run_ids]
    mapping = "cliniko.contact_mapping"
    return [one for one in found if clinics.count(one[1], "cliniko.patients") and not clinics.count(one[1], mapping)]


def _is_over(clinics: Clinics) -> bool:
    """Return whether every organization's last run has succeeded, no run is unfinished and the backfill is complete."""
    runs = _rows(clinics, RUNS)
    backfills = _rows(clinics, "select status from dagster.bulk_actions")
    return (
        list({name: status for name, status, *_ in runs}.values()) == ["SUCCESS"] * len(NAMES)
        and {status for _, status, *_ in runs} <= {"SUCCESS", "FAILURE"}
        and all(status.startswith("COMPLETED_") for (status,) in backfills)
    )


def _rows(clinics: Clinics, statement: str) -> list[tuple[Any, ...]]:
    """Return the rows that the operator sees, or no rows if the connection leads to the killed database."""
    with suppress(DatabaseUnavailableError):
        return clinics.rows(statement)
    return []


def _kill_database(data: Path) -> None:
    """Kill the server and all its processes."""
    server = int((data / "postmaster.pid").read_text().partition("\n")[0])
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    for process in (server, *map(int, children)):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
