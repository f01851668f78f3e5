"""Syncs whose process is killed at any moment: nobody has to mend anything, and nobody reads anything half done.

CLINIKO_TEST_KILLS says how many are killed, 6 where it is not set; `make test-kills` kills 50.
"""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID

import dagster as dg
import psycopg
import pytest
import sqlalchemy as sa
from psycopg.rows import dict_row
from sqlalchemy.engine import URL

from cliniko_pipeline.orchestration.instance import STORAGE_VARIABLE, open_instance
from cliniko_pipeline.postgres.engine import ORGANIZATION_ROLE
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline.sandbox.generated import GENERATED_KEY, generated_account
from cliniko_pipeline.sandbox.server import Sandbox
from cliniko_pipeline.sync_options import SyncOptions
from cliniko_pipeline_tests.support import hostile_accounts as hostile
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.independent import expected_active_patients, expected_contact_mapping
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, opened_pipeline
from cliniko_pipeline_tests.support.processes import CommandLine, processes_of, workers_of
from cliniko_pipeline_tests.support.sync_processes import Ended, SyncProcesses, home_with_files

KILLS = int(os.environ.get("CLINIKO_TEST_KILLS", "6"))
KINDS = ("first", "incremental", "full")
"""What is killed in one life of an organization, in this order."""
LIVES = -(-KILLS // len(KINDS))
LIVES_IN_A_TEST = 2
MANY = 2 * len(KINDS) < KILLS
MOST_ATTEMPTS = 8
START = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
TABLES = {
    "patients": "cliniko.patients",
    "individual_appointments": "cliniko.appointments where kind = 'individual'",
    "group_appointments": "cliniko.appointments where kind = 'group'",
    "attendees": "cliniko.attendees",
}
EVERYTHING = frozenset(TABLES)
NAMES = ("appointment_types", "practitioners")
BOOKKEEPING = ("id", "created_at", "updated_at")

Rows = dict[UUID, dict[str, Any]]
"""Rows of active_patients by their contact."""
Records = dict[str, dict[str, dict[str, Any]]]
"""Records by resource and id."""


class Watcher:
    """Reads an organization's active_patients again and again, in a thread, and keeps each state that is new."""

    def __init__(self, url: URL, organization_id: str) -> None:
        self.states: list[Rows] = []
        self._url = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._organization_id = organization_id
        self._over = threading.Event()

    @contextmanager
    def watching(self) -> Iterator["Watcher"]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        last: object = self
        with psycopg.connect(self._url, application_name="watcher", row_factory=dict_row) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.execute("select set_config('role', %s, false)", (ORGANIZATION_ROLE,))
            connection.execute("select set_config('app.organization_id', %s, false)", (self._organization_id,))
            connection.commit()
            is_over = False
            while not is_over:
                is_over = self._over.wait(0.002)
                (row,) = connection.execute(
                    "select md5(string_agg(found::text, '' order by id)) as state from public.active_patients as found"
                ).fetchall()
                if row["state"] != last:
                    last = row["state"]
                    found = connection.execute("select * from public.active_patients").fetchall()
                    self.states.append({row["contact_id"]: row for row in found})
                connection.commit()


class Life:
    """An organization from its first sync on. Its account changes between syncs only, and so does Cliniko's clock."""

    def __init__(self, number: int, dice: random.Random) -> None:
        self.id = f"clinic-{number}"
        # A day for each, so that one clock serves all.
        self.now = START + timedelta(days=number)
        self.dice = dice
        self.account = generated_account(
            200, 600, dice.randrange(1000), self.now - timedelta(hours=1), group_share=0.1, name=self.id
        )
        self.account.api_key = f"MS0tbm90LWEtc2VjcmV0-{self.id}-au5"
        self.contacts = [
            hostile.contact(dice.getrandbits(100), self.id, cliniko_patient_id=record["id"])
            if number % 2
            else hostile.contact(dice.getrandbits(100), self.id, email=record["email"], name="Somebody")
            for number, record in enumerate(self.account.records["patients"].values())
            if number < 150
        ]
        self.produced: list[Rows] = [{}]
        """What each sync makes of active_patients if it comes so far; at first there is nothing."""
        self.completed = 0
        self._lost: Records = {each: {} for each in TABLES}
        self._noticed: Records = {each: {} for each in TABLES}
        self._made = 0

    def change(self) -> None:
        """Much happens, and it is stored nowhere yet."""
        at = _text(self.now + timedelta(minutes=1))
        self.now += timedelta(minutes=5)
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
        """Some records of every resource, all of them stored, are gone for good."""
        numbers = {"patients": 4, "individual_appointments": 9, "group_appointments": 2, "attendees": 9}
        for resource, number in numbers.items():
            for record in self._some(resource, number):
                self.account.delete(resource, record["id"])
                self._lost[resource][record["id"]] = record

    def notice(self, resources: frozenset[str]) -> None:
        """The pipeline has seen what is gone of these resources."""
        for resource in resources:
            self._noticed[resource] |= self._lost[resource]
            self._lost[resource] = {}

    def begin_sync(self, *, full: bool) -> None:
        """The next sync produces another state than those before, whatever has changed."""
        self.now += timedelta(minutes=1)
        wire = self.wire(EVERYTHING if full else frozenset())
        self.produced.append(expected_active_patients(wire, self.contacts, self.id, self.now))

    def wire(self, noticing: frozenset[str] = frozenset()) -> dict[str, list[dict[str, Any]]]:
        """What is right to take for the account's records, `noticing` what else is gone of these resources."""
        found = {each: self.account.wire_records(each, "http://sandbox/v1") for each in (*TABLES, *NAMES)}
        for resource in TABLES:
            deleted = {"deleted_at": _text(self.now)}
            found[resource] += [record | deleted for record in self._noticed[resource].values()]
            deleted = deleted if resource in noticing else {}
            found[resource] += [record | deleted for record in self._lost[resource].values()]
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
        return _text(self.now + timedelta(hours=self.dice.randrange(-80 * 24, 20 * 24)))


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class Operator:
    """Starts syncs, kills them, and looks at what they leave."""

    def __init__(
        self, environ: dict[str, str], pipeline: PipelineUnderTest, processes: SyncProcesses, dice: random.Random
    ) -> None:
        self.environ = environ
        self.pipeline = pipeline
        self.dice = dice
        self.seconds = 0.0
        """How long a whole sync takes, about: a little less than the last one took."""
        self.life: Life
        self.watcher: Watcher
        self.sandbox: Sandbox
        self._processes = processes
        self._lives = 0
        self._stack = ExitStack()

    @contextmanager
    def at_work(self) -> Iterator["Operator"]:
        with self._stack, self.pipeline.sandbox([], clock=self._clock) as self.sandbox:
            yield self

    def _clock(self) -> float:
        return self.life.now.timestamp()

    @contextmanager
    def new_life(self) -> Iterator[Life]:
        """An organization that was never synced; at the end, everything that was seen of it must have been right."""
        life = self.life = Life(self._lives, self.dice)
        self._lives += 1
        self.sandbox.add(life.account)
        self.pipeline.add_organization(life.id, self.sandbox, life.account)
        self.pipeline.add_contacts(life.contacts)
        with Watcher(self.pipeline.database.url, life.id).watching() as self.watcher:
            yield life
        _assert_each_state_is_what_one_sync_produced(self.watcher, life)

    def kill(self, kind: str, moment: float) -> bool:
        """Whether the sync was killed, at the moment, a share of its duration; it may have ended before."""
        if kind == "full":
            self.life.lose()
        if kind != "first":
            self.life.change()
        ended = self._sync(full=kind == "full", kill_after=moment * self.seconds)
        if ended.signal is None:
            self._assert_completed(ended, noticed=EVERYTHING if kind == "full" else frozenset())
        return ended.signal is not None

    def kill_in_a_crawl(self) -> None:
        """As soon as some of the appointments are there, or are said to be."""
        self.life.begin_sync(full=False)
        condition = f"organization_id = '{self.life.id}' and resource = 'individual_appointments' and records > 150"
        ended = self._processes.run(
            self.environ,
            self.life.id,
            SyncOptions(self.life.now),
            kill_when=lambda: self._count("cliniko.crawls", condition) > 0,
        )
        assert ended.signal is not None
        # And one was killed between marking itself alive and making its run.
        (self.pipeline.runtime.settings.dagster_home / "run_marks" / str(UUID(int=1))).touch()
        # What was read before may be another when the next goes on.
        self.life.change()

    def follow(self, *, full: bool = False, takes_up_full: bool = False) -> None:
        """The sync after one that was killed succeeds, whatever has happened since; where that was a full one, an
        ordinary one takes it up.
        """
        if takes_up_full:
            # What the killed one has begun to read whole, the next ends.
            wait_until(lambda: self._count("pg_stat_activity", f"{OF_OTHERS} and state <> 'idle'") == 0)
            crawls = self.pipeline.rows(self.life.id, "cliniko.crawls")
            self.life.notice(frozenset(crawl["resource"] for crawl in crawls if crawl["reconciles"]))
        if len(self.life.produced) > 1 and self.dice.random() < 0.5:
            self.life.change()
        ended = self._sync(full=full)
        self._assert_completed(ended, noticed=EVERYTHING if full else frozenset())

    def kill_when_it_is_seen(self) -> None:
        """As soon as active_patients shows what the sync has made of it, its process is killed."""
        self.life.change()
        seen = len(self.watcher.states)
        self.life.begin_sync(full=False)
        options = SyncOptions(self.life.now)
        ended = self._processes.run(
            self.environ, self.life.id, options, kill_when=lambda: len(self.watcher.states) > seen
        )
        assert ended.signal is not None
        assert self.pipeline.active_patients(self.life.id) == self.life.produced[-1]

    def _sync(self, *, full: bool = False, kill_after: float | None = None) -> Ended:
        self.life.begin_sync(full=full)
        options = SyncOptions(self.life.now, full)
        return self._processes.run(self.environ, self.life.id, options, kill_after=kill_after)

    def _assert_completed(self, ended: Ended, *, noticed: frozenset[str]) -> None:
        assert ended.succeeded, ended.error
        self.seconds = ended.seconds * 0.95
        self.life.completed += 1
        self.life.notice(noticed)
        self._assert_right(self.life)
        self._assert_nothing_is_left_running(self.life.id)

    def _assert_right(self, life: Life) -> None:
        wire = life.wire()
        assert self.pipeline.contact_mapping(life.id) == expected_contact_mapping(wire, life.contacts, life.id)
        assert self.pipeline.active_patients(life.id) == life.produced[-1]
        for resource, table in TABLES.items():
            rows = self.pipeline.rows(life.id, table)
            assert sorted(row["id"] for row in rows) == sorted(record["id"] for record in wire[resource])
            assert {row["id"] for row in rows if row["vanished_at"] is not None} == life.vanished(resource)

    def _assert_nothing_is_left_running(self, organization_id: str) -> None:
        runs = sorted(self.pipeline.rows(organization_id, "cliniko.sync_runs"), key=lambda run: run["started_at"])
        assert {run["status"] for run in runs} <= {"succeeded", "failed"}
        assert runs[-1]["status"] == "succeeded"
        tags = {"dagster/partition": organization_id}
        assert all(run.is_finished for run in self.instance.get_runs(dg.RunsFilter(tags=tags)))
        assert not list((self.pipeline.runtime.settings.dagster_home / "run_marks").glob("*"))
        assert all(crawl["completed_at"] for crawl in self.pipeline.rows(organization_id, "cliniko.crawls"))
        assert self.pipeline.rows(organization_id, "cliniko.crawled_ids") == []
        # That a client is gone, the server notices within moments.
        wait_until(lambda: self._count("pg_stat_activity", f"{OF_OTHERS} and state <> 'idle'") == 0)
        wait_until(
            lambda: self._count("pg_locks join pg_stat_activity using (pid)", f"{OF_OTHERS} and {ADVISORY}") == 0
        )

    def _count(self, tables: str, condition: str) -> int:
        with self.pipeline.database.operator() as connection:
            return connection.execute(sa.text(f"select count(*) from {tables} where {condition}")).scalar_one()

    @cached_property
    def instance(self) -> dg.DagsterInstance:
        # Opened late: the first sync is to make it.
        return self._stack.enter_context(open_instance(self.pipeline.runtime))


OF_OTHERS = "datname = current_database() and pid <> pg_backend_pid() and application_name <> 'watcher'"
ADVISORY = "locktype = 'advisory'"


def _assert_each_state_is_what_one_sync_produced(watcher: Watcher, life: Life) -> None:
    places = []
    for state in watcher.states:
        contents = {contact: {c: row[c] for c in row if c not in BOOKKEEPING} for contact, row in state.items()}
        assert contents in life.produced, f"a state that no sync produces: {len(state)} rows"
        places.append(life.produced.index(contents))
    assert places == sorted(set(places)), "an older state came back, or one was there twice"
    assert len(places) > life.completed
    for before, after in zip(watcher.states, watcher.states[1:], strict=False):
        for contact in before.keys() & after.keys():
            same = [(row["id"], row["created_at"]) for row in (before[contact], after[contact])]
            assert same[0] == same[1], "a row that stays is another"


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.02)


def moments() -> dict[tuple[int, str], float]:
    """When to kill, as shares of a sync's duration: one in each of so many equal parts of it, in no order."""
    dice = random.Random("moments")
    found = [(part + dice.random()) / KILLS for part in range(KILLS)]
    dice.shuffle(found)
    return dict(zip(((life, kind) for life in range(LIVES) for kind in KINDS), found, strict=False))


MOMENTS = moments()


@pytest.fixture(scope="module")
def processes() -> Iterator[SyncProcesses]:
    with SyncProcesses() as processes:
        yield processes


@pytest.mark.parametrize("number", range(-(-LIVES // LIVES_IN_A_TEST)))
def test_whenever_a_sync_is_killed_the_next_is_right_without_help_and_nobody_reads_anything_half_done(
    database_url: URL, tmp_path: Path, processes: SyncProcesses, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    # Where there are many, every second has its Dagster instance in PostgreSQL, which takes long.
    environ = environment(database_url, tmp_path if MANY and number % 2 else home_with_files(tmp_path))
    for name in ("DAGSTER_HOME", STORAGE_VARIABLE):
        monkeypatch.setenv(name, "")  # and back again after the test, which opens the instance
    dice = random.Random(f"life {number}")
    with opened_pipeline(environ) as pipeline, Operator(environ, pipeline, processes, dice).at_work() as operator:
        with operator.new_life():
            operator.follow()
            # The first one has made the Dagster instance, too, and tells nothing of how long others take.
            operator.follow()
        with operator.new_life():
            operator.kill_in_a_crawl()
            operator.follow()
        first = number * LIVES_IN_A_TEST
        for life in range(first, min(first + LIVES_IN_A_TEST, LIVES)):
            _live(operator, life)


def _live(operator: Operator, number: int) -> None:
    for _ in range(MOST_ATTEMPTS):
        with operator.new_life():
            if operator.kill("first", MOMENTS[number, "first"]):
                operator.follow()
                _kill_more(operator, number)
                return
    pytest.fail("the first sync always ended before it was killed")


def _kill_more(operator: Operator, number: int) -> None:
    for kind in KINDS[1:]:
        moment = MOMENTS.get((number, kind))
        if moment is not None:
            assert any(operator.kill(kind, moment) for _ in range(MOST_ATTEMPTS))
            full = kind == "full" and number % 2 == 0
            operator.follow(full=full, takes_up_full=kind == "full" and not full)
    if number % LIVES_IN_A_TEST == 0:
        operator.kill_when_it_is_seen()
        operator.follow()


def test_after_the_first_sync_of_all_was_killed_while_it_made_the_dagster_instance_the_next_makes_it_anew(
    database_url: URL, tmp_path: Path, processes: SyncProcesses
) -> None:
    environ = environment(database_url, tmp_path)
    account = Account.from_records("clinic", "au5", GENERATED_KEY, {"patients": [hostile.patient("1")]})
    with opened_pipeline(environ) as pipeline, pipeline.sandbox([account]) as sandbox:
        pipeline.add_organization("clinic", sandbox, account)
        with pipeline.database.operator() as connection:

            def a_table_is_there() -> bool:
                return connection.execute(
                    sa.text("select exists (select from pg_tables where tablename = 'runs')")
                ).scalar_one()

            ended = processes.run(environ, "clinic", SyncOptions(START), kill_when=a_table_is_there)
            assert ended.signal is not None
            assert not connection.execute(sa.text("select to_regclass('dagster.runs')")).scalar_one()
        assert processes.run(environ, "clinic", SyncOptions(START)).succeeded
        assert [row["id"] for row in pipeline.rows("clinic", "cliniko.patients")] == ["1"]


def test_after_the_command_was_killed_the_next_is_right_and_the_worker_that_it_left_ends_by_itself(
    database_url: URL, tmp_path: Path
) -> None:
    environ = environment(database_url, tmp_path)
    command = CommandLine(environ, tmp_path)
    records = {
        "patients": [hostile.patient(str(number)) for number in range(1, 901)],
        "individual_appointments": [hostile.individual_appointment("2000", "1", "2026-06-01T09:00:00Z")],
    }
    account = Account.from_records("clinic", "au5", GENERATED_KEY, records)
    contacts = [hostile.contact(1, "clinic", cliniko_patient_id="1")]
    with opened_pipeline(environ) as pipeline, pipeline.sandbox([account]) as sandbox:
        pipeline.add_organization("clinic", sandbox, account)
        pipeline.add_contacts(contacts)
        # Slow enough for the worker to be in the middle of it.
        sandbox.faults = Faults(latency_ms=200)
        with command.start("sync", "clinic", "--as-of", START.isoformat()) as running:
            running.wait_until(lambda: sandbox.counters.requests(resource="patients") >= 2)
            running.process.kill()
            running.process.wait()
            assert workers_of(tmp_path)
            sandbox.faults = Faults()
            done = command("sync", "clinic", "--as-of", START.isoformat())
        assert done.returncode == 0, done.stderr
        wait_until(lambda: not processes_of(tmp_path))
        wire = {name: account.wire_records(name, "http://sandbox/v1") for name in (*TABLES, *NAMES)}
        assert pipeline.active_patients("clinic") == expected_active_patients(wire, contacts, "clinic", START)
        assert len(pipeline.rows("clinic", "cliniko.patients")) == len(account.records["patients"])
        runs = sorted(pipeline.rows("clinic", "cliniko.sync_runs"), key=lambda run: run["started_at"])
        assert [run["status"] for run in runs] == ["failed", "succeeded"]
        with pipeline.database.operator() as connection:
            states = connection.execute(sa.text("select status from dagster.runs order by id")).scalars().all()
        assert states == ["FAILURE", "SUCCESS"]
