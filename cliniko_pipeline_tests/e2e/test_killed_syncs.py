"""Tests of syncs whose process is killed. The next sync needs no help, and no table is visible half-written.

PostgreSQL stops the process in a chosen write or commit, where the test kills it.
"""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.orchestration.instance.home import STORAGE_VARIABLE, open_instance
from cliniko_pipeline.postgres.tables import TENANT_TABLES
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.accounts.generated import GENERATED_KEY, generated_account
from cliniko_pipeline.sync_options import SyncOptions
from cliniko_pipeline_tests.support import hostile_accounts as hostile
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.independent import expected_active_patients, expected_contact_mapping
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, opened_pipeline
from cliniko_pipeline_tests.support.processes import CommandLine, processes_of
from cliniko_pipeline_tests.support.stop_points import Event, StopPoints
from cliniko_pipeline_tests.support.sync_processes import Ended, SyncProcesses, home_with_files
from cliniko_pipeline_tests.support.synced_organizations import (
    CRAWLED,
    START,
    TABLES,
    ManualClock,
    cliniko_text,
    wire_records,
)
from cliniko_pipeline_tests.support.waiting import wait_until

EVERYTHING = frozenset(CRAWLED)
APPOINTMENTS = EVERYTHING - {"patients"}
BOOKKEEPING = ("id", "created_at", "updated_at")
OTHER_SESSIONS = (
    "datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
    " and application_name = 'cliniko_pipeline'"
)

Rows = dict[UUID, dict[str, Any]]
"""Rows of active_patients by their contact."""
Records = dict[str, dict[str, dict[str, Any]]]
"""Records by resource and id."""


class Clinic:
    """An organization with the changes of its account, and the active_patients that each of its syncs produces."""

    def __init__(self, seed: str) -> None:
        self.id = "clinic"
        self.clock = ManualClock()
        self.dice = random.Random(seed)
        self.account = generated_account(200, 600, 7, START - timedelta(hours=1), group_share=0.1, name=self.id)
        self.contacts = [
            hostile.contact(number, self.id, cliniko_patient_id=record["id"])
            if number % 2
            else hostile.contact(number, self.id, email=record["email"], name="Somebody")
            for number, record in enumerate(self.account.records["patients"].values(), start=1)
            if number < 150
        ]
        self.produced: list[Rows] = [{}]
        """The active_patients that each sync produces if it gets that far. At first, the table is empty."""
        self._lost: Records = {each: {} for each in CRAWLED}
        self._noticed: Records = {each: {} for each in CRAWLED}
        self._made = 0

    def change(self) -> None:
        """Change many records of every resource."""
        at = cliniko_text(self.clock.now + timedelta(minutes=1))
        self.clock.advance(minutes=5)
        for number, patient in enumerate(self._some("patients", 120)):
            changes = (
                {"first_name": f"New {at}"},
                {"archived_at": at},
                {"email": f"{patient['id']}@example.org"},
                {"archived_at": None},
                {"merged_at": at, "merged_with_patient": hostile.link("patients", self._one("patients")["id"])},
            )
            self._put("patients", patient, at, changes[number % 5])
        for number, appointment in enumerate(self._some("individual_appointments", 230)):
            changes = (
                {"cancelled_at": at},
                {"starts_at": self._some_start()},
                {"archived_at": at},
                {"cancelled_at": None, "archived_at": None},
                {"patient": hostile.link("patients", self._one("patients")["id"])},
            )
            self._put("individual_appointments", appointment, at, changes[number % 5])
        for group in self._some("group_appointments", 20):
            self._put("group_appointments", group, at, {"starts_at": self._some_start()})
        for number, attendee in enumerate(self._some("attendees", 120)):
            booking = hostile.link("bookings", self._one("group_appointments")["id"])
            changes = ({"id": self._new_id(), "booking": booking, "created_at": at}, {"cancelled_at": at})
            self._put("attendees", attendee, at, changes[number % 2])
        for _ in range(30):
            patient = hostile.patient(self._new_id(), "New", f"Person {self._made}", created_at=at)
            self._put("patients", patient, at, {})
            booked = hostile.individual_appointment(self._new_id(), patient["id"], self._some_start(), created_at=at)
            self._put("individual_appointments", booked, at, {})

    def lose(self) -> None:
        """Delete some stored records of every resource in Cliniko."""
        numbers = {"patients": 4, "individual_appointments": 9, "group_appointments": 2, "attendees": 9}
        for resource, number in numbers.items():
            for record in self._some(resource, number):
                self.account.delete(resource, record["id"])
                self._lost[resource][record["id"]] = record

    def notice(self, resources: frozenset[str]) -> None:
        """Note that the pipeline has noticed the deleted records of these resources."""
        for resource in resources:
            self._noticed[resource] |= self._lost[resource]
            self._lost[resource] = {}

    def begin_sync(self, *, full: bool) -> None:
        self.clock.advance(minutes=1)
        wire = self.wire(EVERYTHING if full else frozenset())
        self.produced.append(expected_active_patients(wire, self.contacts, self.id, self.clock.now))

    def wire(self, noticing: frozenset[str] = frozenset()) -> dict[str, list[dict[str, Any]]]:
        """Return the account's records and the deleted records.

        Deleted records are marked if the pipeline has noticed them, or if their resource is in `noticing`.
        """
        found = wire_records(self.account)
        deleted = {"deleted_at": cliniko_text(self.clock.now)}
        for resource in CRAWLED:
            found[resource] += [record | deleted for record in self._noticed[resource].values()]
            marks = deleted if resource in noticing else {}
            found[resource] += [record | marks for record in self._lost[resource].values()]
        return found

    def vanished(self, resource: str) -> set[str]:
        return set(self._noticed[resource])

    def _one(self, resource: str) -> dict[str, Any]:
        return self._some(resource, 1)[0]

    def _some(self, resource: str, number: int) -> list[dict[str, Any]]:
        keys = [entry.key for entry in self.account._tables[resource].entries()]
        found = (self.account.get(resource, key) for key in self.dice.sample(keys, number))
        return [record for record in found if record is not None]

    def _put(self, resource: str, record: dict[str, Any], at: str, changes: dict[str, Any]) -> None:
        self.account.put(resource, record | {"updated_at": at} | changes)

    def _new_id(self) -> str:
        self._made += 1
        return f"77{self._made:010}"

    def _some_start(self) -> str:
        return cliniko_text(self.clock.now + timedelta(hours=self.dice.randrange(-80 * 24, 20 * 24)))


class Operator:
    """Operator of one clinic, who starts syncs, kills them at stop points and checks the results."""

    def __init__(
        self,
        environ: dict[str, str],
        pipeline: PipelineUnderTest,
        processes: SyncProcesses,
        stop_points: StopPoints,
        clinic: Clinic,
    ) -> None:
        self.environ = environ
        self.pipeline = pipeline
        self.processes = processes
        self.stop_points = stop_points
        self.clinic = clinic
        self.stack = ExitStack()

    def kill(self, kind: str, event: Event, number: int) -> None:
        """Kill a first, incremental or full sync in its nth write or commit."""
        if kind == "full":
            self.clinic.lose()
        if kind != "first":
            self.clinic.change()
        before = self._active_rows()
        self.clinic.begin_sync(full=kind == "full")
        options = SyncOptions(self.clinic.clock.now, kind == "full")
        with self.stop_points.at(event, number) as is_stopped:

            def readers_see_one_state() -> bool:
                if not is_stopped():
                    return False
                self._assert_one_state(before)
                return True

            ended = self.processes.run(
                self.environ, self.clinic.id, options, kill_when=readers_see_one_state, page_by_page=True
            )
            assert ended.signal is not None
            assert is_stopped(), f"the sync has fewer {event} than {number}: {ended}"
        self._wait_for_sessions()
        self._assert_one_state(before)

    def resume(self, kind: str = "incremental") -> None:
        """Sync and check everything. An incremental sync finishes the full crawls of a killed sync."""
        if kind == "incremental":
            crawls = self.pipeline.rows(self.clinic.id, "cliniko.crawls")
            full = {crawl["resource"] for crawl in crawls if crawl["reconciles"] or crawl["needs_full"]}
            # The appointments are one asset. If one of its full crawls was interrupted, its other crawls are full too.
            if any(crawl["resource"] in full & APPOINTMENTS and not crawl["completed_at"] for crawl in crawls):
                full |= APPOINTMENTS
            self.clinic.notice(frozenset(full))
        before = self._active_rows()
        self.clinic.begin_sync(full=kind == "full")
        options = SyncOptions(self.clinic.clock.now, kind == "full")
        ended: Ended = self.processes.run(self.environ, self.clinic.id, options)
        assert ended.succeeded, ended.error
        self.clinic.notice(EVERYTHING if kind == "full" else frozenset())
        self._assert_one_state(before)
        self._assert_right()
        self._assert_nothing_is_left_running()

    def _active_rows(self) -> Rows:
        return {row["contact_id"]: row for row in self.pipeline.rows(self.clinic.id, "public.active_patients")}

    def _assert_one_state(self, before: Rows) -> None:
        """Assert that the table is the result of a sync, and that remaining rows keep their ids and creation times."""
        rows = self._active_rows()
        contents = {key: {c: row[c] for c in row if c not in BOOKKEEPING} for key, row in rows.items()}
        assert contents in self.clinic.produced, f"a state that no sync produces: {len(rows)} rows"
        for contact in rows.keys() & before.keys():
            assert [rows[contact][column] for column in BOOKKEEPING[:2]] == [
                before[contact][column] for column in BOOKKEEPING[:2]
            ]

    def _assert_right(self) -> None:
        clinic, wire = self.clinic, self.clinic.wire()
        assert self.pipeline.contact_mapping(clinic.id) == expected_contact_mapping(wire, clinic.contacts, clinic.id)
        assert self.pipeline.active_patients(clinic.id) == clinic.produced[-1]
        for resource, (table, kind) in TABLES.items():
            rows = [row for row in self.pipeline.rows(clinic.id, table) if kind.items() <= row.items()]
            assert sorted(row["id"] for row in rows) == sorted(record["id"] for record in wire[resource])
            assert {row["id"] for row in rows if row["vanished_at"] is not None} == clinic.vanished(resource)

    def _assert_nothing_is_left_running(self) -> None:
        runs = sorted(self.pipeline.rows(self.clinic.id, "cliniko.sync_runs"), key=lambda run: run["started_at"])
        assert {run["status"] for run in runs} <= {"succeeded", "failed"}
        assert runs[-1]["status"] == "succeeded"
        tags = {"dagster/partition": self.clinic.id}
        assert all(run.is_finished for run in self.instance.get_runs(dg.RunsFilter(tags=tags)))
        assert self._count("cliniko.run_heartbeats", "beat_at < now() - interval '2 minutes'") == 0
        assert all(crawl["completed_at"] for crawl in self.pipeline.rows(self.clinic.id, "cliniko.crawls"))
        assert self.pipeline.rows(self.clinic.id, "cliniko.crawled_ids") == []
        self._wait_for_sessions()
        locks = "pg_locks join pg_stat_activity using (pid)"
        assert self._count(locks, f"{OTHER_SESSIONS} and locktype = 'advisory'") == 0

    def _wait_for_sessions(self) -> None:
        """Wait until PostgreSQL has noticed the end of the client."""
        wait_until(
            lambda: self._count("pg_stat_activity", f"{OTHER_SESSIONS} and state <> 'idle'") == 0,
            "a session of the killed process goes on",
        )

    def _count(self, tables: str, condition: str) -> int:
        with self.pipeline.database.operator() as connection:
            return connection.execute(sa.text(f"select count(*) from {tables} where {condition}")).scalar_one()

    @cached_property
    def instance(self) -> dg.DagsterInstance:
        # The instance is opened late, because the first sync must create it.
        return self.stack.enter_context(open_instance(self.pipeline.runtime))


@pytest.fixture(scope="module")
def processes() -> Iterator[SyncProcesses]:
    with SyncProcesses() as processes:
        yield processes


@pytest.fixture
def operator(
    database_url: URL,
    tmp_path: Path,
    processes: SyncProcesses,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Operator]:
    environ = environment(database_url, home_with_files(tmp_path))
    # The limit is off, because the changes of the account really lose many matches.
    environ["CLINIKO_LOST_MATCHES_SHARE_LIMIT"] = "1"
    for name in ("DAGSTER_HOME", STORAGE_VARIABLE):
        monkeypatch.setenv(name, "")  # so that they are restored after the test, because opening the instance sets them
    clinic = Clinic(request.node.name)
    with (
        opened_pipeline(environ) as pipeline,
        StopPoints(database_url, TENANT_TABLES) as stop_points,
        pipeline.sandbox([clinic.account], clock=clinic.clock) as sandbox,
    ):
        pipeline.add_organization(clinic.id, sandbox, clinic.account)
        pipeline.add_contacts(clinic.contacts)
        operator = Operator(environ, pipeline, processes, stop_points, clinic)
        with operator.stack:
            yield operator


def test_killed_sync_is_resumed(operator: Operator) -> None:
    """The first sync is killed while it stores appointments, and an unknown run of Dagster has left a heartbeat."""
    operator.kill("first", "writes", 50)
    with operator.pipeline.database.operator() as connection:
        connection.execute(
            sa.text("insert into cliniko.run_heartbeats (run_id, beat_at) values (:run_id, now() - interval '1 hour')"),
            {"run_id": str(UUID(int=1))},
        )
    # Records that were read before the kill may change before the next sync.
    operator.clinic.change()
    operator.resume()


POINTS: list[tuple[Event, tuple[int, int, int]]] = [
    ("writes", (1, 1, 1)),
    ("writes", (30, 25, 60)),
    ("writes", (70, 90, 160)),
    ("commits", (1, 1, 1)),
    ("commits", (300, 200, 1000)),
    ("commits", (600, 400, 3000)),
]
"""The number of the write or commit in which a first, an incremental and a full sync are killed."""


@pytest.mark.slow
@pytest.mark.parametrize(("event", "numbers"), POINTS)
def test_syncs_killed_at_any_point_are_resumed(operator: Operator, event: Event, numbers: tuple[int, int, int]) -> None:
    operator.kill("first", event, numbers[0])
    operator.resume()
    operator.kill("incremental", event, numbers[1])
    operator.clinic.change()
    operator.resume()
    operator.kill("full", event, numbers[2])
    operator.resume("full" if numbers[2] % 2 else "incremental")


@pytest.mark.slow
def test_kill_while_dagster_storage_is_made_is_resumed(
    database_url: URL, tmp_path: Path, processes: SyncProcesses
) -> None:
    environ = environment(database_url, tmp_path)
    account = Account.from_records("clinic", "au5", GENERATED_KEY, {"patients": [hostile.patient("1")]})
    with (
        opened_pipeline(environ) as pipeline,
        pipeline.sandbox([account]) as sandbox,
        StopPoints(database_url, ()) as stop_points,
    ):
        pipeline.add_organization("clinic", sandbox, account)
        stop_points.stop_at_definitions("CREATE INDEX")
        with stop_points.at("definitions") as is_stopped:
            ended = processes.run(environ, "clinic", SyncOptions(START), kill_when=is_stopped, page_by_page=True)
            assert ended.signal is not None
        with pipeline.database.operator() as connection:
            assert connection.exec_driver_sql("select to_regclass('dagster.runs')").scalar_one() is None
        assert processes.run(environ, "clinic", SyncOptions(START)).succeeded
        assert [row["id"] for row in pipeline.rows("clinic", "cliniko.patients")] == ["1"]


@pytest.mark.slow
def test_worker_of_a_killed_command_ends(database_url: URL, tmp_path: Path) -> None:
    """Only the command is killed, while its worker writes. The next command succeeds."""
    environ = environment(database_url, home_with_files(tmp_path))
    command = CommandLine(environ, tmp_path)
    patients = [hostile.patient(str(number)) for number in range(1, 901)]
    account = Account.from_records("clinic", "au5", GENERATED_KEY, {"patients": patients})
    with (
        opened_pipeline(environ) as pipeline,
        pipeline.sandbox([account]) as sandbox,
        StopPoints(database_url, TENANT_TABLES) as stop_points,
    ):
        pipeline.add_organization("clinic", sandbox, account)
        with ExitStack() as stopped:
            is_stopped = stopped.enter_context(stop_points.at("writes", 5))
            with command.start("sync", "clinic", "--as-of", START.isoformat()) as running:
                running.wait_until(is_stopped, "the worker did not come to its fifth write")
                running.process.kill()
                running.process.wait()
                assert processes_of(tmp_path), "the worker ended with the command"
                stopped.close()
                done = command("sync", "clinic", "--as-of", START.isoformat(), seconds=180)
        assert done.returncode == 0, done.stderr
        wait_until(lambda: not processes_of(tmp_path), lambda: f"still there: {processes_of(tmp_path)}")
        assert len(pipeline.rows("clinic", "cliniko.patients")) == len(patients)
        runs = sorted(pipeline.rows("clinic", "cliniko.sync_runs"), key=lambda run: run["started_at"])
        assert [run["status"] for run in runs] == ["failed", "succeeded"]
