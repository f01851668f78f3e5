"""Histories of a clinic: its account changes between and during syncs, syncs fail, are killed and meet faults, and the
server's clock is up to a minute wrong. After each sync in which nothing happened, what is stored is the account as it
is, and the tables equal the independent computation.

A history that fails is printed as it can be written here: `History(...)`. `make test-histories` lives through 525 of
them instead of 15.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, currently_in_test_context, given, note, seed, settings
from hypothesis import strategies as st
from sqlalchemy.engine import URL

from cliniko_pipeline.cliniko import pagination
from cliniko_pipeline.cliniko.throttle import BudgetRegistry
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.sandbox.faults import BrokenPage, Faults
from cliniko_pipeline.sandbox.server import Sandbox
from cliniko_pipeline_tests.support.changing_clinics import (
    CHANGES,
    NAMES,
    RESOURCES,
    Beginning,
    Change,
    ChangingClinic,
    Key,
    ServerClock,
    instant,
    linked,
)
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.hostile_accounts import WireRecord
from cliniko_pipeline_tests.support.independent import expected_active_patients, expected_contact_mapping
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, SkippedTime, opened_pipeline
from cliniko_pipeline_tests.support.properties import THOROUGH, examples

TESTS = 5
"""In so many tests the histories are, for as many processes to run them."""

# --- What a history is made of ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Clock:
    """So many true seconds pass, and the server's clock is set to be so far ahead."""

    seconds: int = 0
    ahead: int = 0


@dataclass(frozen=True)
class Sync:
    """A sync, quiet unless something is said.

    Attributes:
        full: from the beginning, marking what is gone; `believing` it, however much that is.
        hours: how far from the server's clock `as_of` is.
        pace: the seconds between two requests.
        meanwhile: what happens before its second, third, ... request.
        faults: the seed of faults that pass.
        broken: a page that cannot be read: of which resource, and its number.
        killed_at_request, killed_at_commit: before which request, or instead of which commit of something written, the
            process ends.
    """

    full: bool = False
    believing: bool = True
    hours: int = 0
    pace: int = 0
    meanwhile: tuple[tuple["Change | Clock", ...], ...] = ()
    faults: int | None = None
    broken: tuple[str, int] | None = None
    killed_at_request: int | None = None
    killed_at_commit: int | None = None

    @property
    def nothing_changes(self) -> bool:
        return not any(isinstance(one, Change) for gap in self.meanwhile for one in gap)


Step = Change | Clock | Sync


@dataclass(frozen=True)
class History:
    """`page_size`: Cliniko's pages hold 100 records; small ones have as many boundaries with fewer records.

    Unless pages are `ahead`, one request is sent after the other, so that the same happens each time.
    """

    page_size: int
    beginning: Beginning
    steps: tuple[Step, ...]
    ahead: bool = False


clocks = st.builds(
    Clock,
    seconds=st.sampled_from([0, 1, 30, 115, 175, 300, 86_400]),
    ahead=st.sampled_from([0, -60, 60, -25, 25]),
)


def changes(kinds: list[str]) -> st.SearchStrategy[Change]:
    return st.builds(Change, st.sampled_from(kinds), st.integers(0, 250), st.integers(0, 11))


def syncs(happening: st.SearchStrategy[Change | Clock]) -> st.SearchStrategy[Sync]:
    """Those that something happens to."""
    often = {
        "full": st.sampled_from([False, False, True]),
        "believing": st.sampled_from([True, True, True, False]),
        "pace": st.sampled_from([0, 1, 120]),
    }
    amid = st.lists(st.lists(happening, max_size=2).map(tuple), min_size=2, max_size=8).map(tuple)
    perhaps_amid = st.just(()) | amid
    faults = st.integers(0, 99)
    return st.one_of(
        st.builds(Sync, meanwhile=amid, faults=st.none() | faults, **often),
        st.builds(Sync, meanwhile=perhaps_amid, faults=st.none() | faults, **often),
        st.builds(Sync, broken=st.tuples(st.sampled_from((*RESOURCES, *NAMES)), st.integers(1, 3)), **often),
        st.builds(Sync, killed_at_request=st.integers(1, 14), meanwhile=perhaps_amid, **often),
        st.builds(Sync, killed_at_commit=st.integers(1, 20), meanwhile=perhaps_amid, **often),
    )


quiet_syncs = st.builds(
    Sync,
    full=st.sampled_from([False, False, False, True]),
    believing=st.sampled_from([True, True, False]),
    hours=st.sampled_from([0, 0, -2, 2]),
    pace=st.sampled_from([0, 0, 1, 7]),
    meanwhile=st.lists(st.lists(clocks, max_size=1).map(tuple), max_size=3).map(tuple),
)


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Twice: changes, syncs that something happens to, more changes, a quiet sync."""
    page_size = draw(st.sampled_from([10, 10, 100]))
    sizes = st.sampled_from([0, page_size - 1, page_size + 1, 2 * page_size + page_size // 2, 3 * page_size])
    beginning = Beginning(
        patients=draw(sizes),
        individual_appointments=draw(sizes),
        group_appointments=draw(st.sampled_from([0, 0, 2, page_size + 2])),
        attendees_of_each=draw(st.integers(0, 3)),
    )
    # Not all kinds in one history, so that the same kind happens several times.
    kinds = draw(st.lists(st.sampled_from(sorted(CHANGES)), min_size=5, max_size=15, unique=True))
    happening = st.one_of(changes(kinds), changes(kinds), changes(kinds), clocks)
    steps: list[Step] = []
    for least, most in ((0, 1), (1, 2)):
        steps += draw(st.lists(happening, max_size=4))
        for disturbed in draw(st.lists(syncs(happening), min_size=least, max_size=most)):
            steps += [disturbed, *draw(st.lists(happening, max_size=5))]
        steps.append(draw(quiet_syncs))
    return History(page_size, beginning, tuple(steps), ahead=draw(st.booleans()))


# --- A process that can be killed, and requests before which something happens ------------------------------


class Killed(BaseException):
    """Nothing that would catch it can do anything any more: see MortalDatabase."""


class MortalDatabase(Database):
    """A database for a process that may end instead of a commit; from its end on, nothing reaches the database."""

    commits_left: int | None = None
    is_dead = False

    @contextmanager
    def organization(self, organization_id: str, *, is_resumable: bool = False) -> Iterator[sa.Connection]:
        if self.is_dead:
            raise Killed
        with super().organization(organization_id, is_resumable=is_resumable) as connection:
            yield connection
            if self.commits_left is not None and self._has_written(connection):
                self.commits_left -= 1
                if self.commits_left == 0:
                    self.die()

    def die(self) -> None:
        self.is_dead = True
        raise Killed

    @staticmethod
    def _has_written(connection: sa.Connection) -> bool:
        return connection.execute(sa.text("select pg_current_xact_id_if_assigned() is not null")).scalar_one()

    def revive(self, commits_left: int | None = None) -> None:
        self.is_dead = False
        self.commits_left = commits_left


class Requests:
    """A request budget without a limit, that tells of each request before it is sent.

    With several on their way, something happens before one while Cliniko answers another.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.before_each: Callable[[int], None] = lambda _number: None
        self._lock = threading.Lock()

    @contextmanager
    def request(self) -> Iterator[float]:
        with self._lock:
            self.sent += 1
            self.before_each(self.sent)
        yield 0.0

    def close(self) -> None:
        pass

    def block(self, seconds: float) -> None:
        pass

    def left(self) -> int:
        return 1000


@dataclass
class World:
    """What all histories of a test have in common."""

    pipeline: PipelineUnderTest
    database: MortalDatabase
    sandbox: Sandbox
    clock: ServerClock
    requests: Requests
    histories: int = 0
    syncs: int = 0


@pytest.fixture
def world(database_url: URL, tmp_path: Path) -> Iterator[World]:
    clock, requests = ServerClock(), Requests()
    with opened_pipeline(environment(database_url, tmp_path), waits=SkippedTime()) as pipeline:
        database = MortalDatabase(pipeline.database.url)
        pipeline.runtime.database = database
        pipeline.runtime._budgets = BudgetRegistry(lambda _digest: requests)
        with pipeline.sandbox([], clock=clock) as sandbox:
            world = World(pipeline, database, sandbox, clock, requests)
            yield world
        database.close()


# --- Living through it --------------------------------------------------------------------------------------


class Life:
    """A history as it happens. `gone` tells of what was hard-deleted whether it must be marked, may be, or may not."""

    def __init__(self, world: World, instance: dg.DagsterInstance) -> None:
        world.clock.passed, world.clock.ahead = 0.0, 0
        world.histories += 1
        self.world = world
        self.pipeline = PipelineUnderTest(world.pipeline.runtime, instance)
        self.clinic = ChangingClinic(f"history-{world.histories}", world.clock)
        self.may_be_marked: set[Key] = set()
        self.must_be_marked: set[Key] = set()
        self.full_may_go_on = False
        self.left_by_a_full_one: set[Key] = set()
        self.stored = Stored(self.pipeline, self.clinic.id)
        self.earliest = world.clock.now

    def begin(self, beginning: Beginning) -> None:
        self.clinic.begin(beginning)
        self.world.sandbox.add(self.clinic.account)
        self.pipeline.add_organization(self.clinic.id, self.world.sandbox, self.clinic.account)

    def live(self, step: Step) -> None:
        match step:
            case Change():
                self._note(self.clinic.happen(step))
            case Clock():
                self.world.clock.passed += step.seconds
                self.world.clock.set_ahead(step.ahead)
                self._note(f"{step.seconds} s pass")
            case Sync():
                self.sync(step)

    def sync(self, step: Sync) -> None:
        self._note(f"{step} ...")
        self._save_contacts()
        before, as_of = self.stored, self.world.clock.now + timedelta(hours=step.hours)
        gone_before = set(self.clinic.gone)
        result = self._run(step, as_of)
        self.stored = Stored(self.pipeline, self.clinic.id)
        self._note(f"... {'killed' if result is None else 'succeeded' if result.success else _told(result)}")

        may_have_marked = step.full or self.full_may_go_on
        if may_have_marked:
            self.may_be_marked |= self.clinic.gone.keys()
        assert self.stored.vanished <= self.clinic.gone.keys() & self.may_be_marked
        self.full_may_go_on = may_have_marked and (result is None or not result.success)
        doubtful = self._doubtful(before, gone_before)
        if not step.believing:
            self.left_by_a_full_one.clear()
        if result is None:
            return
        if not result.success:
            self._assert_explained(step, _told(result), before, doubtful)
            if step.full and step.believing:
                self.left_by_a_full_one |= self._older(gone_before)
        elif step.nothing_changes:
            if step.full:
                assert step.believing or not doubtful
                self.must_be_marked |= self._older(self.clinic.gone.keys())
            # What a full sync did not come to, the next one does.
            self.must_be_marked |= self.left_by_a_full_one
            self.assert_right(as_of)
            self.clinic.settle()

    def assert_right(self, as_of: datetime) -> None:
        """Everything stored is the account as it is, and the tables are what is computed of it independently."""
        clinic, vanished = self.clinic, self.stored.vanished
        assert vanished >= self.must_be_marked
        for resource in RESOURCES:
            self._assert_stored(resource)
        self._assert_set_aside()
        wire, contacts = clinic.wire(vanished), list(clinic.contacts.values())
        assert self.pipeline.contact_mapping(clinic.id) == expected_contact_mapping(wire, contacts, clinic.id)
        assert self.pipeline.active_patients(clinic.id) == expected_active_patients(wire, contacts, clinic.id, as_of)

    # --- Running ---------------------------------------------------------------------------------------------

    def _run(self, step: Sync, as_of: datetime) -> dg.ExecuteInProcessResult | None:
        """None where it was killed."""
        world = self.world

        def before_each(number: int) -> None:
            if number == step.killed_at_request:
                world.database.die()
            if number > 1:
                world.clock.passed += step.pace
                for one in step.meanwhile[number - 2] if number - 2 < len(step.meanwhile) else ():
                    self.live(one)
            self.earliest = min(self.earliest, world.clock.now)

        world.syncs += 1
        self.earliest = world.clock.now
        world.requests.sent, world.requests.before_each = 0, before_each
        world.sandbox.faults = _faults(step)
        world.database.revive(step.killed_at_commit)
        try:
            result = self.pipeline.sync(
                self.clinic.id, as_of, full=step.full, accept_deletions=step.believing, log_level="CRITICAL"
            )
            # Dagster catches whatever is raised; a process that was killed would have no result.
            return None if world.database.is_dead else result
        finally:
            world.database.revive()
            world.sandbox.faults = Faults()
            world.requests.before_each = lambda _number: None

    def _save_contacts(self) -> None:
        with self.pipeline.database.operator() as connection:
            connection.execute(
                sa.text("delete from public.contacts where organization_id = :id"), {"id": self.clinic.id}
            )
        self.pipeline.add_contacts(list(self.clinic.contacts.values()))

    def _note(self, told: str) -> None:
        clock = self.world.clock
        (note if currently_in_test_context() else print)(f"{clock.now:%d %H:%M:%S} ({clock.ahead:+d}) {told}")

    # --- What is gone -----------------------------------------------------------------------------------------

    def _older(self, gone: Iterable[Key]) -> set[Key]:
        """Of these what a full sync misses: what was created when it began, or later by the server's clock, was none
        of its business.
        """
        records = {key: self.clinic.gone[key] for key in gone}
        return {key for key, one in records.items() if one is not None and instant(one, "created_at") < self.earliest}

    def _doubtful(self, before: "Stored", gone: set[Key]) -> set[str]:
        """The resources of which a full sync misses more than it believes."""
        limit = self.pipeline.runtime.settings.vanished_share_limit
        doubtful = set()
        for resource in RESOURCES:
            old = [each for each, row in before.live(resource).items() if row["created_at"] < self.earliest]
            missed = [each for each in old if (resource, each) in gone]
            if len(missed) > limit * len(old):
                doubtful.add(resource)
        return doubtful

    def _assert_explained(self, step: Sync, told: str, before: "Stored", doubtful: set[str]) -> None:
        if step.broken is not None and f"{step.broken[0]}, page {step.broken[1]}" in told:
            return
        assert "more than is believed" in told, told
        assert not step.believing
        for resource in RESOURCES:
            if f"{resource}: " in told and step.nothing_changes and step.full:
                assert resource in doubtful
                assert self.stored.vanished_of(resource) == before.vanished_of(resource)

    # --- What is stored ---------------------------------------------------------------------------------------

    def _assert_stored(self, resource: str) -> None:
        rows, live = self.stored.rows[resource], self.stored.live(resource)
        assert all(row["deleted_at"] is not None for row in rows.values() if row["vanished_at"] is not None)
        due = {
            record_id: as_stored(resource, record)
            for record_id, record in self.clinic.stored(resource, ()).items()
            if (resource, record_id) not in self.stored.vanished
        }
        if resource == "attendees":
            # Those of individual appointments may be left out.
            groups = {record_id for record_id, row in due.items() if self.clinic.is_group(row["booking_id"])}
            due = {record_id: row for record_id, row in due.items() if record_id in groups or record_id in live}
        found = {row_id: {c: row[c] for c in due.get(row_id, row)} for row_id, row in live.items()}
        assert differences(found, due) == {}

    def _assert_set_aside(self) -> None:
        rows = self.pipeline.rows(self.clinic.id, "cliniko.rejected_records")
        found = [(row["resource"], row["id"]) for row in rows]
        assert len(found) == len(set(found)), "a record is set aside twice"
        gone = self.clinic.bad & self.clinic.gone.keys()
        assert set(found) - gone == self.clinic.bad - gone


class Stored:
    """What is stored of an organization's records: the rows by resource and id."""

    def __init__(self, pipeline: PipelineUnderTest, organization_id: str) -> None:
        appointments = pipeline.rows(organization_id, "cliniko.appointments")
        found = {
            "patients": pipeline.rows(organization_id, "cliniko.patients"),
            "individual_appointments": [row for row in appointments if row["kind"] == "individual"],
            "group_appointments": [row for row in appointments if row["kind"] == "group"],
            "attendees": pipeline.rows(organization_id, "cliniko.attendees"),
        }
        self.rows = {resource: {row["id"]: row for row in found[resource]} for resource in RESOURCES}
        self.vanished = {key for resource in RESOURCES for key in self.vanished_of(resource)}

    def live(self, resource: str) -> dict[str, dict[str, Any]]:
        return {row_id: row for row_id, row in self.rows[resource].items() if row["vanished_at"] is None}

    def vanished_of(self, resource: str) -> set[Key]:
        return {(resource, row_id) for row_id, row in self.rows[resource].items() if row["vanished_at"] is not None}


def differences(found: dict[str, Any], due: dict[str, Any]) -> dict[str, Any]:
    """Of each record that is not as it should be, what is stored and what is due."""
    return {
        each: {"stored": found.get(each), "due": due.get(each)}
        for each in found.keys() | due.keys()
        if found.get(each) != due.get(each)
    }


def as_stored(resource: str, record: WireRecord) -> dict[str, Any]:
    """The columns of a record that is well."""
    stamps = ("created_at", "updated_at", "archived_at", "deleted_at")
    row: dict[str, Any] = {field: instant(record, field) for field in stamps}
    match resource:
        case "patients":
            row |= {field: record[field] for field in ("first_name", "last_name", "email")}
            return row | {"merged_into_id": linked(record, "merged_with_patient")}
        case "attendees":
            row |= {"cancelled_at": instant(record, "cancelled_at"), "arrived": record["arrived"]}
            return row | {"booking_id": linked(record, "booking"), "patient_id": linked(record, "patient")}
        case _:
            return row | {
                "starts_at": instant(record, "starts_at"),
                "cancelled_at": instant(record, "cancelled_at"),
                "did_not_arrive": bool(record.get("did_not_arrive")),
                "patient_id": linked(record, "patient") if "patient" in record else None,
                "appointment_type_id": linked(record, "appointment_type"),
                "practitioner_id": linked(record, "practitioner"),
            }


def _told(result: dg.ExecuteInProcessResult) -> str:
    """What the failed steps say, in a line each where the pipeline raised it on purpose."""
    failures = [event.step_failure_data for event in result.filter_events(lambda event: event.is_step_failure)]
    return "; ".join(
        (one.user_failure_data and one.user_failure_data.description) or one.error_display_string for one in failures
    )


def _faults(step: Sync) -> Faults:
    if step.broken is not None:
        return Faults(broken_pages=(BrokenPage(*step.broken),))
    if step.faults is not None:
        return Faults(
            seed=step.faults,
            # Six attempts must do.
            server_error_rate=0.03,
            reset_before_body_rate=0.01,
            reset_in_body_rate=0.02,
            truncated_body_rate=0.02,
            html_ok_rate=0.01,
            too_many_requests_rate=0.02,
        )
    return Faults()


@contextmanager
def small_pages(size: int, *, ahead: bool = False) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        # One at a time however long it takes, or at once as many as may be.
        patched.setattr(pagination, "FEWEST_AT_ONCE", pagination.MOST_AT_ONCE if ahead else 1)
        patched.setattr(pagination, "LONG_WAIT_SECONDS", float("inf"))
        patched.setattr(pagination, "PAGE_SIZE", size)
        patched.setattr(pagination.Listing.url, "__defaults__", (size,))
        yield


def lived_through(world: World, history: History) -> None:
    with small_pages(history.page_size, ahead=history.ahead), dg.DagsterInstance.ephemeral() as instance:
        life = Life(world, instance)
        life.begin(history.beginning)
        for step in history.steps:
            life.live(step)


def in_each_gap(kind: str, of: Iterable[int]) -> tuple[tuple[Change], ...]:
    """The same before each request, to one record after the other; whichever resource is read first."""
    return tuple((Change(kind, which, 1),) for which in of)


KNOWN = {
    "what was stamped before the server's clock was set back, in a first sync": History(
        10, Beginning(patients=25), (Clock(0, 60), Change("patient added"), Clock(1, -60), Sync())
    ),
    "what was stamped before the server's clock was set back, in a later one": History(
        10,
        Beginning(patients=25),
        (Sync(), Clock(300, 60), Change("patients imported", value=1), Clock(1, -60), Sync()),
    ),
    "a change right after a sync, by a clock that was set back": History(
        10, Beginning(patients=3), (Sync(), Clock(300, 60), Sync(), Clock(0, -60), Change("patient renamed"), Sync())
    ),
    "a change of what a sync has read already, which goes on for minutes": History(
        10, Beginning(patients=45), (Sync(pace=70, meanwhile=in_each_gap("patient renamed", range(10))), Sync())
    ),
    "changes of what is just being read, in many pages of changes": History(
        10,
        Beginning(patients=25),
        (
            Sync(),
            Clock(86_400),
            Change("patients imported", value=1),
            Sync(pace=1, meanwhile=in_each_gap("patient renamed", range(25, 37))),
            Clock(86_400),
            Sync(),
        ),
    ),
    "a full sync that failed before it came to everything that was deleted for good": History(
        10,
        Beginning(patients=7, individual_appointments=7, group_appointments=7, attendees_of_each=1),
        (
            Sync(),
            Change("group deleted for good"),
            Change("attendee deleted for good"),
            Sync(full=True, broken=("individual_appointments", 1)),
            Sync(),
        ),
    ),
    "deletions for good while everything is read": History(
        10,
        Beginning(patients=45),
        (Sync(), Sync(full=True, pace=1, meanwhile=in_each_gap("patient deleted for good", [0] * 12)), Sync()),
    ),
    "a sync that began before a clock was set back marks nothing that is there": History(
        10,
        Beginning(patients=25),
        (
            Clock(0, 60),
            Change("patient added"),
            Sync(),
            Clock(0, -30),
            # Whichever asset is read first, one patient comes in right after the first page, stamped before it.
            Sync(
                full=True,
                meanwhile=(
                    (Clock(0, -45), Change("patient added")),
                    (Clock(0, -30),),
                    (),
                    (),
                    (Clock(0, -60), Change("patient added")),
                ),
            ),
            Sync(),
        ),
    ),
    "the first group of an account, and attendees that come later": History(
        10,
        Beginning(patients=5, individual_appointments=25),
        (
            Sync(),
            Clock(86_400),
            Change("group added", value=2),
            Sync(),
            Clock(86_400),
            Sync(),
            Clock(86_400),
            Change("attendee added", 3),
            Change("attendee added again", 1, 1),
            Change("attendee cancelled, or back", 0),
            Sync(),
        ),
    ),
    "changes while a sync is killed, goes on and is killed again": History(
        10,
        Beginning(individual_appointments=65),
        (
            Sync(killed_at_request=7),
            Clock(86_400),
            *(Change("individual appointment moved", number, number + 1) for number in range(0, 65, 6)),
            Sync(killed_at_request=3),
            Clock(86_400),
            Change("many individual appointments cancelled, or back", 3, 2),
            Sync(),
        ),
    ),
}


@pytest.mark.parametrize("history", KNOWN.values(), ids=KNOWN.keys())
def test_after_a_history_of_a_known_kind_the_tables_are_right(world: World, history: History) -> None:
    lived_through(world, history)
    lived_through(world, replace(history, ahead=True))


def test_instead_of_whichever_commit_a_first_reading_is_killed_the_next_one_has_everything(world: World) -> None:
    killed = 0
    for number in range(1, 12):
        with small_pages(10), dg.DagsterInstance.ephemeral() as instance:
            life = Life(world, instance)
            life.begin(Beginning(patients=25))
            world.database.revive(commits_left=number)
            life.pipeline.materialize(life.clinic.id, "cliniko/patients")
            killed += world.database.is_dead
            world.database.revive()
            assert life.pipeline.materialize(life.clinic.id, "cliniko/patients").success
            stored = Stored(life.pipeline, life.clinic.id)
        assert stored.rows["patients"].keys() == life.clinic.records["patients"].keys()
        if killed < number:
            break
    # The run begins, the reading begins, three pages, the rows are counted, the run ends.
    assert killed == 7


@pytest.mark.parametrize("number", range(TESTS))
def test_after_every_quiet_sync_the_tables_are_right_whatever_happened_before(world: World, number: int) -> None:
    @settings(
        max_examples=examples(15, 525) // TESTS,
        database=None,
        # Making a history shorter takes many more of them.
        phases=[Phase.generate, Phase.shrink] if THOROUGH else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(histories())
    def lived(history: History) -> None:
        lived_through(world, history)

    # The same few for everyone, others each time where there are many.
    (lived if THOROUGH else seed(number)(lived))()
