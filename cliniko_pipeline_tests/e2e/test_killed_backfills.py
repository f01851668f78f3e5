"""A backfill of ten organizations, during which a run's worker, the daemon or the database gets SIGKILL.

The killed server is started again; nothing else is done to recover.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster._daemon.types import DaemonHeartbeat

from cliniko_pipeline.errors import DatabaseUnavailableError
from cliniko_pipeline.orchestration.instance import STORAGE_VARIABLE, open_instance
from cliniko_pipeline.orchestration.runs import ABANDONED
from cliniko_pipeline.postgres import schema
from cliniko_pipeline.postgres.embedded import EmbeddedServer
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline.sandbox.generated import generated_account
from cliniko_pipeline_tests.support import hostile_accounts as hostile
from cliniko_pipeline_tests.support.environments import environment, free_port
from cliniko_pipeline_tests.support.independent import expected_active_patients, expected_contact_mapping
from cliniko_pipeline_tests.support.pipelines import opened_pipeline
from cliniko_pipeline_tests.support.processes import CommandLine, Running, marks_held_by, processes_of
from cliniko_pipeline_tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

NAMES = [f"clinic-{number}" for number in range(10)]
RESOURCES = (
    "patients",
    "individual_appointments",
    "group_appointments",
    "attendees",
    "appointment_types",
    "practitioners",
)
RUNS = """
select organization.value, run.status, exists (
    select from dagster.run_tags as tag where tag.run_id = run.run_id and tag.key = 'dagster/backfill'
)
from dagster.runs as run
join dagster.run_tags as organization on organization.run_id = run.run_id and organization.key = 'dagster/partition'
order by run.id
"""
RECOVERY_SECONDS = 600
"""Seconds: two minutes until a run is given up that was killed before it began, a minute until it is tried again, and
what the schedule, the sensors and a small machine add.
"""


class KilledDeployment:
    """An operator's own database server, ten clinics, and what the operator starts."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.home = folder / "home"
        self._data = folder / "server" / "data"
        self._stack = stack
        server = stack.enter_context(EmbeddedServer(self._data.parent))
        # Once a day: what is repeated here is repeated since it has failed.
        once = {"CLINIKO_SYNC_EVERY_MINUTES": "1440", "CLINIKO_FULL_SYNC_AT": "off"}
        environ = environment(server.url, self.home) | once
        self.command = CommandLine(environ, folder)
        self.pipeline = stack.enter_context(opened_pipeline(environ))
        schema.migrate(self.pipeline.database, create_application_tables=True)
        self.sandbox = stack.enter_context(self.pipeline.sandbox([], faults=Faults(latency_ms=200)))
        self.contacts: dict[str, list[hostile.ContactRow]] = {}
        self.accounts = {name: self._open(number, name) for number, name in enumerate(NAMES)}

    def _open(self, seed: int, name: str) -> Account:
        anchor = datetime.now(UTC) - timedelta(hours=1)
        account = generated_account(200, 600, seed, anchor, group_share=0.1, name=name)
        account.api_key = f"MS0tbm90LWEtc2VjcmV0-{name}-au5"
        self.sandbox.add(account)
        self.pipeline.add_organization(name, self.sandbox, account)
        self.contacts[name] = [
            hostile.contact(1000 * seed + number, name, cliniko_patient_id=record["id"])
            for number, record in enumerate(account.records["patients"].values())
            if number < 150
        ]
        self.pipeline.add_contacts(self.contacts[name])
        return account

    def ui(self) -> Running:
        """Daemon, webserver and code server; they end with the test, whatever happens."""
        self._show_a_daemon()
        running = self._stack.enter_context(self.command.start("ui", "--port", str(free_port())))
        self._stack.callback(_end, running)
        return running

    def backfill(self) -> Running:
        """The command that launches one and follows it."""
        # Launched before the daemon begins, since that looks for backfills at once and then every half a minute.
        self._show_a_daemon()
        running = self._stack.enter_context(self.command.start("backfill", "--all", "--follow"))
        running.wait_for("0 of 10 done, 10 waiting", 120)
        return running

    def _show_a_daemon(self) -> None:
        """What follows a backfill gives up two minutes after the last sign of one, and a busy machine starts slowly."""
        with open_instance(self.pipeline.runtime) as instance:
            instance.add_daemon_heartbeat(DaemonHeartbeat(datetime.now(UTC).timestamp(), "BACKFILL", None))

    def wait_for_the_middle(self, running: Running) -> tuple[int, str]:
        """Until some organizations are done and others are not; returns a worker in the midst of its run, and whose."""
        found: list[tuple[int, str]] = []
        running.wait_until(
            lambda: len(self._synced()) >= 2 and found.extend(self._workers()) is None and found, "no worker", 180
        )
        assert len(self._synced()) < len(NAMES) - 2
        return found[-1]

    def processes(self, words: str) -> list[int]:
        return [number for number, command in processes_of(self.home).items() if words in command]

    def kill_database(self) -> None:
        """The server and all its processes at once."""
        server = int((self._data / "postmaster.pid").read_text().partition("\n")[0])
        children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        for process in (server, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def start_database(self) -> None:
        self._stack.enter_context(EmbeddedServer(self._data.parent))

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """What the operator sees of Dagster's tables; nothing where the database is down."""
        try:
            with self.pipeline.database.operator() as connection:
                return [tuple(row) for row in connection.exec_driver_sql(statement)]
        except DatabaseUnavailableError:
            return []

    def runs(self, *, of_backfill_only: bool = False) -> dict[str, list[str]]:
        """The states of each organization's runs, the oldest first."""
        found: dict[str, list[str]] = {name: [] for name in NAMES}
        for name, status, is_of_backfill in self.rows(RUNS):
            if is_of_backfill or not of_backfill_only:
                found[name].append(status)
        return found

    def failed(self) -> list[str]:
        """Whose run failed, once for each; and none was made twice for the backfill, however often it began anew."""
        found = self.runs(of_backfill_only=True)
        assert {len(states) for states in found.values()} == {1}, found
        assert sum(states.count("FAILURE") for states in self.runs().values()) == str(found).count("FAILURE")
        return [name for name, states in found.items() if states == ["FAILURE"]]

    def is_over(self) -> bool:
        """Each organization's last run has succeeded, none goes on, and the backfill knows of its end."""
        runs = self.runs()
        states = {state for each in runs.values() for state in each}
        backfills = self.rows("select status from dagster.bulk_actions")
        return (
            all(each and each[-1] == "SUCCESS" for each in runs.values())
            and states <= {"SUCCESS", "FAILURE"}
            and all(status.startswith("COMPLETED_") for (status,) in backfills)
        )

    def assert_all_is_right(self) -> None:
        for name in NAMES:
            rows = self.pipeline.active_patients(name)
            (as_of,) = {row["search_date_to"] for row in rows.values()}
            account, contacts = self.accounts[name], self.contacts[name]
            wire = {each: account.wire_records(each, "http://sandbox/v1") for each in RESOURCES}
            assert len(rows) > 10
            assert rows == expected_active_patients(wire, contacts, name, as_of.replace(tzinfo=UTC))
            assert self.pipeline.contact_mapping(name) == expected_contact_mapping(wire, contacts, name)
            stored = [row["id"] for row in self.pipeline.rows(name, "cliniko.patients")]
            assert sorted(stored) == sorted(account.records["patients"])

    def assert_nothing_is_left(self) -> None:
        for name in NAMES:
            states = [row["status"] for row in self.pipeline.rows(name, "cliniko.sync_runs")]
            assert set(states) <= {"succeeded", "failed"}, states
            assert states.count("succeeded") >= 1
            assert all(crawl["completed_at"] for crawl in self.pipeline.rows(name, "cliniko.crawls"))
            assert self.pipeline.rows(name, "cliniko.crawled_ids") == []
        assert self.rows("select 1 from pg_locks where locktype = 'advisory'") == []
        assert self.rows("select 1 from cliniko.scheduling where failures > 0 or retry_at is not null") == []
        wait_until(lambda: not list((self.home / "dagster" / "run_marks").glob("*")), "marks are left", 90)

    def _synced(self) -> set[str]:
        return {name for name, states in self.runs().items() if "SUCCESS" in states}

    def _workers(self) -> list[tuple[int, str]]:
        """Those that have written a part of what their run is to write, by the lock that they hold."""
        found = []
        for process in self.processes("spawn_main"):
            for run_id in marks_held_by(process):
                key = "key = 'dagster/partition'"
                for (name,) in self.rows(f"select value from dagster.run_tags where run_id = '{run_id}' and {key}"):
                    crawls = self.pipeline.rows(name, "cliniko.crawls")
                    if any(crawl["records"] for crawl in crawls) and not self.pipeline.active_patients(name):
                        found.append((process, name))
        return found


def _end(running: Running) -> None:
    if running.process.poll() is None:
        running.interrupt()
        running.wait(90)


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KilledDeployment]:
    for name in ("DAGSTER_HOME", STORAGE_VARIABLE):
        monkeypatch.setenv(name, "")  # and back again after the test, which opens the instance
    with ExitStack() as stack:
        yield KilledDeployment(tmp_path, stack)


def test_backfill_completes_after_a_worker_is_killed(deployment: KilledDeployment) -> None:
    following = deployment.backfill()
    running = deployment.ui()
    worker, name = deployment.wait_for_the_middle(running)
    os.kill(worker, signal.SIGKILL)
    running.wait_until(deployment.is_over, "the backfill did not complete", RECOVERY_SECONDS)
    deployment.assert_all_is_right()
    deployment.assert_nothing_is_left()
    assert deployment.failed() == [name]
    assert following.wait(30) == 1
    (error,) = (line for line in following.output.splitlines() if line.startswith("Error:"))
    assert error == f"Error: {name} failed. {ABANDONED}"


def test_backfill_completes_after_the_daemon_is_killed(deployment: KilledDeployment) -> None:
    following = deployment.backfill()
    running = deployment.ui()
    deployment.wait_for_the_middle(running)
    (daemon,) = deployment.processes("dagster._daemon")
    os.kill(daemon, signal.SIGKILL)
    assert running.wait(90) == 1
    assert "Error: Dagster has ended by itself, or was killed." in running.output
    wait_until(lambda: set(processes_of(deployment.home)) <= {following.process.pid}, "processes are left")
    running = deployment.ui()
    running.wait_until(deployment.is_over, "the backfill did not complete", RECOVERY_SECONDS)
    deployment.assert_all_is_right()
    deployment.assert_nothing_is_left()
    failed = deployment.failed()
    assert following.wait(30) == (1 if failed else 0)
    told = [line for line in following.output.splitlines() if line.startswith("Error:")]
    assert sorted(line.split()[1] for line in told) == failed


def test_backfill_completes_after_the_database_is_killed(deployment: KilledDeployment) -> None:
    following = deployment.backfill()
    running = deployment.ui()
    deployment.wait_for_the_middle(running)
    deployment.kill_database()
    assert following.wait(90) == 1
    (error,) = (line for line in following.output.splitlines() if line.startswith("Error:"))
    assert "What was launched goes on when it does." in error
    assert "Traceback" not in following.output
    # Down for so long that the runs that were under way have died of it.
    running.wait_until(lambda: not deployment.processes("spawn_main"), "workers live on", 180)
    deployment.start_database()
    running.wait_until(deployment.is_over, "the backfill did not complete", RECOVERY_SECONDS)
    deployment.assert_all_is_right()
    deployment.assert_nothing_is_left()
    assert deployment.failed()
