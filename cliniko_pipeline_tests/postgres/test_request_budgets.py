"""The budget that all processes share: never too many requests in any window, and as many as that allows.

When Cliniko counts a request, nobody knows: at any moment from the permission to the answer. So of the requests with
one key, at no moment more than the limit may be permitted and not yet answered a window ago.

Two kinds of tests. In most, the database's clock is moved by the test, and several processes are simulated in one
thread, each with a budget of its own and all of them on one real PostgreSQL: whole minutes pass at once, and each
example happens again in the same way. In the others real processes and threads take requests in real time.
"""

import heapq
import itertools
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import ClinikoPipelineError, DatabaseUnavailableError, SettingsError
from cliniko_pipeline.postgres import request_budgets
from cliniko_pipeline.postgres.embedded import EmbeddedServer
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.request_budgets import LONGEST_ANSWER_SECONDS, SharedRequestBudget
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.properties import THOROUGH, examples

PHASES = [Phase.explicit, Phase.generate, *([Phase.shrink] if THOROUGH else [])]
"""Making an example smaller takes minutes."""
WINDOW = 60.0
UNHEARD_OF = WINDOW + LONGEST_ANSWER_SECONDS
"""So long a request counts of which nobody tells that it was answered."""


@dataclass
class Sent:
    """When a request was permitted, and when it was answered: later than anything while it is not."""

    permitted: float
    answered: float = float("inf")


def most_at_once(sent: Iterable[Sent], window: float) -> int:
    """The most requests that Cliniko can have counted within a window (but for a millionth of a second or two, which
    the database does not know).
    """
    changes = [(one.permitted, 1) for one in sent] + [(one.answered + window - 5e-6, -1) for one in sent]
    return max(itertools.accumulate(change for _, change in sorted(changes)), default=0)


@pytest.mark.parametrize(
    ("sent", "most"),
    [
        ([], 0),
        ([Sent(0, 1), Sent(61, 62)], 1),
        ([Sent(0, 1), Sent(60.9, 62)], 2),
        ([Sent(0), Sent(1000, 1001)], 2),
        ([Sent(0, 30), Sent(1, 2), Sent(63, 64)], 2),
    ],
)
def test_requests_are_counted_by_any_moment_at_which_cliniko_may_have_counted_them(sent, most) -> None:
    assert most_at_once(sent, WINDOW) == most


# --- With a clock that the test moves ---------------------------------------------------------------------


class WouldSleep(Exception):  # noqa: N818 -- no error
    """Instead of sleeping, a simulated process comes back later."""

    def __init__(self, seconds: float) -> None:
        assert 0 < seconds <= request_budgets.LONGEST_SLEEP_SECONDS
        self.seconds = seconds


def would_sleep(seconds: float) -> None:
    raise WouldSleep(seconds)


class MovableClock:
    """PostgreSQL's clock, and the processes', where `clock_timestamp` is found in another schema first."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = 0.0
        self.set_back = 0.0
        self._told: float | None = None

    def monotonic(self) -> float:
        return self.now

    def tell(self) -> None:
        """Lets the database know what time it is; before anything is asked of it."""
        if self._told == (now := self.now - self.set_back):
            return
        self._told = now
        with self.database.operator_statement() as connection:
            connection.execute(
                sa.text("update movable.clock set now = timestamptz '2026-06-15Z' + make_interval(secs => :now)"),
                {"now": now},
            )


MOVABLE_CLOCK = (
    "create schema movable",
    "create table movable.clock (now timestamptz not null)",
    "insert into movable.clock values ('2026-06-15Z')",
    "create function movable.clock_timestamp() returns timestamptz language sql as 'select now from movable.clock'",
)


@pytest.fixture(scope="module")
def movable(module_database: Database) -> Iterator[Database]:
    administer(module_database.url, *MOVABLE_CLOCK)
    database = Database(
        module_database.url.update_query_dict({"options": "-csearch_path=movable,pg_catalog -csynchronous_commit=off"})
    )
    yield database
    database.close()


@pytest.fixture
def clock(movable: Database) -> MovableClock:
    clock = MovableClock(movable)
    clock.tell()
    return clock


class Process:
    """A process of the simulation, with one budget for all its threads."""

    def __init__(self, clock: MovableClock, key: str, limit: int) -> None:
        self.clock = clock
        self.budget = SharedRequestBudget(clock.database, key, limit, sleep=would_sleep, clock=clock.monotonic)
        self.sent: list[Sent] = []
        self.on_their_way: list[OnItsWay] = []
        self.is_killed = False

    def begin(self) -> "OnItsWay | float":
        """A request that was permitted, or how long the process sleeps before it asks again."""
        self.clock.tell()
        permission = self.budget.request()
        try:
            permission.__enter__()
        except WouldSleep as asleep:
            return asleep.seconds
        one = Sent(self.clock.now)
        self.sent.append(one)
        # A permission that nobody holds any more would be given back.
        self.on_their_way.append(OnItsWay(self, one, permission))
        return self.on_their_way[-1]

    def patiently(self) -> float:
        """Asks until a request is permitted, and answers it at once; the seconds that took."""
        began = self.clock.now
        while isinstance(outcome := self.begin(), float):
            self.clock.now += outcome
        outcome.answer()
        return self.clock.now - began


@dataclass
class OnItsWay:
    process: Process
    sent: Sent
    permission: AbstractContextManager[float]

    def answer(self) -> None:
        self.sent.answered = self.process.clock.now
        if not self.process.is_killed:
            self.permission.__exit__(None, None, None)


@dataclass(frozen=True)
class Plan:
    """What the threads of a process do, each for itself: pauses and how long answers take, in turn."""

    threads: tuple[tuple[tuple[float, float], ...], ...]
    killed_at: float | None = None
    closed_at: float | None = None


@dataclass
class Simulation:
    clock: MovableClock
    limit: int
    key: str = field(default_factory=lambda: uuid4().hex)
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def run(self, plans: list[Plan], blocks: list[tuple[float, float]]) -> list[Sent]:
        self.clock.now = 0.0
        processes = [Process(self.clock, self.key, self.limit) for _ in plans]
        for process, plan in zip(processes, plans, strict=True):
            for work in plan.threads:
                self.work(process, iter(work))
            if plan.killed_at is not None:
                self.soon(plan.killed_at, lambda process=process: setattr(process, "is_killed", True))
            if plan.closed_at is not None:
                self.soon(plan.closed_at, lambda process=process: process.is_killed or process.budget.close())
        for at, seconds in blocks:
            self.soon(at, lambda seconds=seconds: self.block(processes[0], seconds))
        while self.events:
            self.clock.now, _, happens = heapq.heappop(self.events)
            self.clock.tell()
            happens()
        return [one for process in processes for one in process.sent]

    def soon(self, seconds: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.clock.now + seconds, next(self.numbers), happens))

    def block(self, process: Process, seconds: float) -> None:
        process.budget.block(seconds)

    def work(self, process: Process, left: Iterator[tuple[float, float]]) -> None:
        step = next(left, None)
        if step is None:
            return
        pause, latency = step
        self.soon(pause, lambda: self.ask(process, left, latency))

    def ask(self, process: Process, left: Iterator[tuple[float, float]], latency: float) -> None:
        if process.is_killed:
            return
        outcome = process.begin()
        if isinstance(outcome, float):
            self.soon(outcome, lambda: self.ask(process, left, latency))
            return
        self.soon(latency, lambda: (outcome.answer(), self.work(process, left))[0])


pauses = st.sampled_from([0.0, 0.0, 0.0, 0.3, 2.5, 40.0, 61.0])
latencies = st.sampled_from([0.0, 0.05, 0.2, 1.5, 20.0, 59.9, 61.0, 119.0])
works = st.lists(st.tuples(pauses, latencies), min_size=1, max_size=6).map(tuple)
plans = st.builds(
    Plan,
    threads=st.lists(works, min_size=1, max_size=3).map(tuple),
    killed_at=st.none() | st.sampled_from([0.1, 5.0, 70.0]),
    closed_at=st.none() | st.sampled_from([1.0, 30.0, 90.0]),
)
blockings = st.lists(st.tuples(st.floats(0, 200), st.floats(-1, 100)), max_size=2)


@given(st.integers(1, 6), st.lists(plans, min_size=1, max_size=3), blockings)
@settings(max_examples=examples(40), phases=PHASES, suppress_health_check=list(HealthCheck))
def test_whatever_processes_do_no_window_holds_more_than_the_limit(clock, limit, plans, blocks) -> None:
    sent = Simulation(clock, limit).run(plans, blocks)
    assert most_at_once(sent, WINDOW) <= limit
    if all(plan.killed_at is None for plan in plans):
        assert len(sent) == sum(len(work) for plan in plans for work in plan.threads)


@given(st.integers(401, 1400), st.lists(plans, min_size=1, max_size=3), blockings)
@settings(max_examples=examples(20), phases=PHASES, suppress_health_check=list(HealthCheck))
def test_no_window_holds_more_than_a_large_limit_of_which_many_are_taken_at_once(clock, limit, plans, blocks) -> None:
    simulation = Simulation(clock, limit)
    # Somebody else has left only a few.
    others = Process(clock, simulation.key, limit)
    others.budget._at_once = limit - 7
    before = others.begin()
    assert isinstance(before, OnItsWay)
    sent = simulation.run(plans, blocks)
    taken = [Sent(0.0)] * (limit - 7)
    assert most_at_once(sent, WINDOW) <= limit
    assert most_at_once([one for one in sent if one.permitted < UNHEARD_OF - 0.001] + taken, WINDOW) <= limit


def process_on(clock: MovableClock, limit: int, key: str | None = None) -> Process:
    return Process(clock, key or uuid4().hex, limit)


def begun(process: Process) -> OnItsWay:
    outcome = process.begin()
    assert isinstance(outcome, OnItsWay)
    return outcome


def test_the_request_over_the_limit_waits_until_a_window_after_the_oldest_answer(clock) -> None:
    process = process_on(clock, 2)
    first = begun(process)
    clock.now += 0.5
    first.answer()
    clock.now += 20
    begun(process).answer()
    assert process.patiently() == pytest.approx(40, abs=0.01)
    assert process.patiently() == pytest.approx(20, abs=0.01)


@pytest.mark.parametrize("latency", [0.0, 30.0, 119.0])
def test_what_a_killed_process_took_comes_back_after_a_window_and_the_longest_answer(clock, latency) -> None:
    key = uuid4().hex
    killed, other = process_on(clock, 3, key), process_on(clock, 3, key)
    for _ in range(2):
        begun(killed)
    clock.now += latency
    # The third is there for the others all the time.
    while clock.now < UNHEARD_OF - WINDOW:
        other.patiently()
    for one in killed.sent:
        one.answered = LONGEST_ANSWER_SECONDS
    assert most_at_once([*killed.sent, *other.sent], WINDOW) == 3
    assert len(other.sent) == 1 + (clock.now - latency) // WINDOW
    clock.now = UNHEARD_OF + WINDOW + 0.01
    assert [isinstance(other.begin(), OnItsWay) for _ in range(4)] == [True, True, True, False]


def test_what_a_killed_process_took_is_not_back_a_moment_earlier(clock) -> None:
    key = uuid4().hex
    begun(process_on(clock, 1, key))
    clock.now = UNHEARD_OF - 0.01
    other = process_on(clock, 1, key)
    assert isinstance(other.begin(), float)
    assert other.patiently() == pytest.approx(0.01, abs=0.005)


def test_a_process_that_sleeps_learns_soon_that_anothers_request_was_answered(clock) -> None:
    key = uuid4().hex
    one, other = process_on(clock, 1, key), process_on(clock, 1, key)
    request = begun(one)
    assert isinstance(other.begin(), float)
    request.answer()
    one.budget.close()
    assert other.patiently() == pytest.approx(WINDOW, abs=0.01)


def test_what_was_answered_and_not_told_comes_back_as_if_the_process_had_been_killed_and_close_tells_it(clock) -> None:
    key = uuid4().hex
    one, other = process_on(clock, 1, key), process_on(clock, 1, key)
    begun(one).answer()
    clock.now = WINDOW + 1
    assert isinstance(other.begin(), float)
    clock.tell()
    one.budget.close()
    assert isinstance(other.begin(), OnItsWay)
    one.budget.close()


def test_a_block_holds_for_all_processes_and_is_never_shortened(clock) -> None:
    key = uuid4().hex
    one, other = process_on(clock, 10, key), process_on(clock, 10, key)
    begun(other).answer()
    clock.tell()
    one.budget.block(30)
    other.budget.block(5)
    one.budget.block(-100)
    assert isinstance(other.begin(), float)
    assert (other.budget.left(), process_on(clock, 10).patiently()) == (0, 0.0)
    assert other.patiently() == pytest.approx(30)
    assert one.patiently() == 0.0


def test_a_block_that_comes_while_someone_sleeps_is_kept(clock) -> None:
    process = process_on(clock, 1)
    process.patiently()
    assert isinstance(process.begin(), float)
    clock.now += 1
    clock.tell()
    process.budget.block(100)
    assert process.patiently() == pytest.approx(100)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), float("-inf"), -5.0])
def test_junk_blocks_nobody(clock, seconds) -> None:
    process = process_on(clock, 1)
    process.budget.block(seconds)
    assert process.patiently() == 0.0


def test_what_is_left_shrinks_with_every_request_and_comes_back(clock) -> None:
    process = process_on(clock, 2)
    left = [process.budget.left()]
    for _ in range(2):
        process.patiently()
        left.append(process.budget.left())
    clock.now += WINDOW + 0.5
    process.patiently()
    assert [*left, process.budget.left()] == [2, 1, 0, 1]


def test_an_interrupted_wait_costs_nothing(clock) -> None:
    process = process_on(clock, 1)
    process.patiently()
    for _ in range(5):
        assert isinstance(process.begin(), float)
    clock.now += WINDOW + 0.1
    assert process.patiently() == 0.0


@pytest.mark.parametrize(("limit", "window"), [(0, 60.0), (-1, 60.0), (1, 0.0), (1, float("nan"))])
def test_a_budget_that_allows_nothing_is_a_mistake_in_the_settings(clock, limit, window) -> None:
    with pytest.raises(SettingsError):
        SharedRequestBudget(clock.database, "key", limit, window=window)


# --- Clocks that jump, and large limits -------------------------------------------------------------------


def row_of(database: Database, key: str) -> Any:
    with database.operator() as connection:
        return connection.execute(
            sa.text("select tickets, requests, count_until from cliniko.request_budgets where key_digest = :key"),
            {"key": key},
        ).one()


@pytest.mark.parametrize("hours", [1, 24 * 365])
def test_a_clock_of_the_database_that_is_set_back_closes_the_budget_no_longer_than_an_answer_can_take(
    clock, hours
) -> None:
    unanswered, answered = process_on(clock, 1), process_on(clock, 1)
    begun(unanswered)
    begun(answered).answer()
    clock.set_back = hours * 3600.0
    assert unanswered.patiently() == pytest.approx(UNHEARD_OF, abs=0.01)
    clock.now = 1.0
    # Of what was answered it is told when.
    assert answered.patiently() == pytest.approx(WINDOW - 1, abs=0.01)


def test_rows_from_the_far_future_count_no_longer_than_an_answer_can_take(clock) -> None:
    process = process_on(clock, 3)
    key = process.budget._key_digest
    process.patiently()
    with clock.database.operator() as connection:
        connection.execute(
            sa.text(
                "update cliniko.request_budgets set tickets = '{7,8,9}', requests = '{1,1,1}',"
                " count_until = array['9999-12-31Z', 'infinity', '2027-01-01Z']::timestamptz[], last_ticket = 9"
                " where key_digest = :key"
            ),
            {"key": key},
        )
    assert process.patiently() == pytest.approx(UNHEARD_OF, abs=0.01)


def test_a_block_from_before_the_clock_was_set_back_ends_too(clock) -> None:
    process = process_on(clock, 1)
    process.budget.block(100)
    clock.set_back = 24 * 3600.0
    assert process.patiently() <= 900


def test_a_clock_of_the_database_that_goes_ahead_stops_nobody(clock) -> None:
    process = process_on(clock, 1)
    process.patiently()
    clock.set_back = -7200.0
    # What the process itself has sent, it knows.
    assert process.patiently() == pytest.approx(WINDOW, abs=0.01)
    assert process_on(clock, 1, process.budget._key_digest).patiently() <= UNHEARD_OF


def test_of_a_large_limit_many_are_taken_at_once_and_what_is_not_sent_in_time_is_given_up(clock) -> None:
    key = uuid4().hex
    one, other = process_on(clock, 4000, key), process_on(clock, 4000, key)
    for _ in range(10):
        begun(one).answer()
    row = row_of(clock.database, key)
    assert (row.tickets, row.requests) == ([1], [10])
    for _ in range(3):
        begun(one).answer()
    assert row_of(clock.database, key).requests == [10, 10]
    clock.now += 1.1
    begun(one).answer()
    assert row_of(clock.database, key).requests == [10, 10, 10]
    assert one.budget.left() == 3970
    one.budget.close()
    # The last that was given up unsent counts from when it was taken.
    clock.now += WINDOW - 0.05
    begun(other)
    assert row_of(clock.database, key).requests == [10, 10]
    clock.now += 0.1
    begun(other)
    clock.now += 1.1
    begun(other)
    assert row_of(clock.database, key).requests == [10, 10]


def test_of_a_large_limit_no_more_are_taken_at_once_than_are_left(clock) -> None:
    key = uuid4().hex
    others, process = process_on(clock, 1200, key), process_on(clock, 1200, key)
    others.budget._at_once = 1200 - 7
    begun(others)
    assert [isinstance(process.begin(), OnItsWay) for _ in range(8)] == [True] * 6 + [False] * 2


def test_the_row_of_an_idle_budget_stays_small(clock) -> None:
    process = process_on(clock, 200)
    for _ in range(200):
        begun(process).answer()
    assert isinstance(process.begin(), float)
    assert len(row_of(clock.database, process.budget._key_digest).tickets) == 200
    clock.now += UNHEARD_OF + 1
    begun(process).answer()
    clock.tell()
    process.budget.close()
    row = row_of(clock.database, process.budget._key_digest)
    assert (len(row.tickets), len(row.requests), len(row.count_until)) == (1, 1, 1)
    with clock.database.operator() as connection:
        size = connection.execute(
            sa.text("select pg_column_size(b) from cliniko.request_budgets as b where key_digest = :key"),
            {"key": process.budget._key_digest},
        ).scalar_one()
    assert size < 300


def test_a_lower_limit_of_one_process_counts_what_others_have_taken_by_a_higher_one(clock) -> None:
    key = uuid4().hex
    many, few = process_on(clock, 20, key), process_on(clock, 2, key)
    for _ in range(20):
        begun(many).answer()
    clock.tell()
    many.budget.close()
    assert few.patiently() == pytest.approx(WINDOW, abs=0.01)


# --- In real time -----------------------------------------------------------------------------------------

SHORT = 1.0


def take(url: str, key: str, limit: int, window: float, threads: int, latency: tuple[float, float], path: str) -> None:
    """Sends as many requests as it may, and notes when each was permitted, and answered. Begins when there is a file
    that says how long.
    """
    # As in the pipeline, but what a killed process took comes back earlier.
    request_budgets.LONGEST_ANSWER_SECONDS = SHORT
    database = Database(url)
    budget = SharedRequestBudget(database, key, limit, window=window)
    rng = random.Random(path)
    Path(path).touch()
    go = Path(path).with_name("go")
    while not go.exists() or not go.read_text():
        time.sleep(0.005)
    until = float(go.read_text())

    def work(number: int) -> None:
        for turn in itertools.count():
            with budget.request():
                told(number, turn, time.monotonic())
                time.sleep(rng.uniform(*latency))
                answered = time.monotonic()
            told(number, turn, answered)
            if answered >= until:
                return

    with Path(path).open("a", buffering=1) as file, ThreadPoolExecutor(threads) as pool:

        def told(*what: object) -> None:
            file.write(" ".join(map(str, what)) + "\n")

        list(pool.map(work, range(threads)))
    budget.close()
    database.close()


class Taking:
    """Processes that take from one budget in real time."""

    def __init__(self, database: Database, folder: Path, limit: int, window: float) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._arguments = (database.url.render_as_string(hide_password=False), uuid4().hex, limit, window)
        self._folder = folder
        self.started: list[tuple[Any, Path]] = []

    def start(self, threads: int, latency: tuple[float, float]) -> Any:
        path = self._folder / f"sent-{len(self.started)}"
        arguments = (*self._arguments, threads, latency, str(path))
        process = self._context.Process(target=take, args=arguments, daemon=True)
        process.start()
        self.started.append((process, path))
        return process

    def go(self, seconds: float) -> float:
        """Until then all of them take, now that all are there."""
        deadline = time.monotonic() + 60
        while not all(path.exists() for _, path in self.started):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        until = time.monotonic() + seconds
        (self._folder / "go").write_text(f"{until}")
        return until

    def sent(self, number: int) -> list[Sent]:
        """By one of them, when all have ended."""
        for process, _ in self.started:
            process.join(60)
        path = self.started[number][1]
        sent: dict[tuple[str, str], Sent] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            thread, turn, when = line.split()
            if (thread, turn) in sent:
                sent[thread, turn].answered = float(when)
            else:
                sent[thread, turn] = Sent(float(when))
        return list(sent.values())

    def wait_for(self, number: int, requests: int) -> None:
        path, deadline = self.started[number][1], time.monotonic() + 30
        while not path.exists() or len(path.read_text().splitlines()) < requests:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def wait_until_one_is_on_its_way(self, number: int) -> None:
        """It takes a while until it is answered."""
        path, deadline = self.started[number][1], time.monotonic() + 30
        while len(path.read_text().splitlines()) % 2 == 0:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_processes_together_keep_the_limit_and_use_it(module_database, tmp_path) -> None:
    limit, window = 20, 2.0
    taking = Taking(module_database, tmp_path, limit, window)
    for _ in range(3):
        taking.start(2, (0.02, 0.08))
    until = taking.go(3.2 * window)
    sent = [one for number in range(3) for one in taking.sent(number)]
    assert most_at_once(sent, window) <= limit
    # A window here is hardly longer than an answer, by which it takes longer until a request may be sent again.
    whole = window + 0.05
    first = min(one.permitted for one in sent)
    windows = int((until - first) / whole)
    assert windows >= 2
    used = sum(one.permitted < first + windows * whole for one in sent)
    assert used >= 0.97 * limit * windows


def test_a_killed_process_takes_what_it_had_with_it_only_for_a_while_and_the_others_go_on(
    module_database, tmp_path
) -> None:
    limit = 8
    taking = Taking(module_database, tmp_path, limit, SHORT)
    victim = taking.start(4, (0.3, 0.5))
    taking.start(4, (0.02, 0.05))
    until = taking.go(6.0)
    taking.wait_for(0, 6)
    taking.wait_for(1, 2)
    taking.wait_until_one_is_on_its_way(0)
    os.kill(victim.pid, signal.SIGKILL)
    killed_at = time.monotonic()
    others, theirs = taking.sent(1), taking.sent(0)
    lost = [one for one in theirs if one.answered == float("inf")]
    for one in lost:
        # Cliniko may be counting it as long as an answer can take, from when the database permitted it: on a busy
        # machine that was a while before the process noted it.
        one.answered = one.permitted + SHORT - 0.2
    assert lost
    assert most_at_once([*theirs, *others], SHORT) <= limit
    # They have all of it when what was lost has come back.
    back = killed_at + 2 * SHORT
    assert until - back >= 2 * SHORT
    assert most_at_once([one for one in others if one.permitted > back], SHORT) == limit


def test_after_a_block_each_process_sends_one_at_a_time_until_nobody_was_blocked_for_a_while(
    module_database, monkeypatch
) -> None:
    monkeypatch.setattr(request_budgets, "CROWDED_SECONDS", 1.0)
    key = uuid4().hex
    blocked, other = (SharedRequestBudget(module_database, key, 1000, window=0.1) for _ in range(2))

    def most_on_their_way(budget: SharedRequestBudget, requests: int) -> int:
        on_their_way, most, lock = 0, 0, threading.Lock()

        def send(_: int) -> None:
            nonlocal on_their_way, most
            with budget.request():
                with lock:
                    on_their_way += 1
                    most = max(most, on_their_way)
                time.sleep(0.03)
                with lock:
                    on_their_way -= 1

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(send, range(requests)))
        return most

    assert most_on_their_way(blocked, 8) > 1
    blocked.block(0.05)
    assert most_on_their_way(blocked, 6) == 1
    # Another process has learnt of it when it takes its next ones.
    assert most_on_their_way(other, 6) == 1
    deadline = time.monotonic() + 30
    while most_on_their_way(other, 8) == 1:
        assert time.monotonic() < deadline


def test_threads_of_one_process_together_keep_the_limit(module_database) -> None:
    budget = SharedRequestBudget(module_database, uuid4().hex, 6, window=0.5)
    sent: list[Sent] = []

    def work(number: int) -> None:
        for _ in range(3):
            with budget.request():
                one = Sent(time.monotonic())
                sent.append(one)
                time.sleep(0.01 * (number % 4))
                one.answered = time.monotonic()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(sent) == 24
    assert most_at_once(sent, 0.5) <= 6


def test_of_processes_that_ask_at_the_same_moment_no_more_than_the_limit_are_permitted(module_database) -> None:
    for _ in range(5):
        key, together = uuid4().hex, threading.Barrier(8)
        budgets = [SharedRequestBudget(module_database, key, 9, sleep=would_sleep) for _ in range(8)]

        def permitted(budget: SharedRequestBudget, together: threading.Barrier = together) -> int:
            together.wait(10)
            permissions = [budget.request() for _ in range(3)]
            try:
                for number, permission in enumerate(permissions):  # noqa: B007 -- it is what is returned
                    permission.__enter__()
            except WouldSleep:
                return number
            return 3

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(permitted, budgets)) == 9


def test_a_request_that_fails_was_sent_all_the_same(module_database) -> None:
    budget = SharedRequestBudget(module_database, uuid4().hex, 2)
    with pytest.raises(ZeroDivisionError), budget.request():
        raise ZeroDivisionError
    with budget.request() as waited:
        assert waited == 0.0
    assert budget.left() == 0


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_stricter_isolation_of_the_operators_does_not_make_processes_fail(module_database, level) -> None:
    option = f"-cdefault_transaction_isolation={level.replace(' ', chr(92) + ' ')}"
    database = Database(module_database.url.update_query_dict({"options": option}))
    key, failures = uuid4().hex, []

    def work(_number: int) -> None:
        budget = SharedRequestBudget(database, key, 500)
        try:
            for _ in range(15):
                with budget.request():
                    pass
            budget.close()
        except DatabaseUnavailableError as error:
            failures.append(str(error))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    database.close()
    assert failures == []


def test_a_process_that_stands_still_with_its_answer_unread_stops_nobody(module_database, monkeypatch) -> None:
    """As one whose machine is gone: nothing ends its transaction."""
    key = uuid4().hex
    budget, other = (SharedRequestBudget(module_database, key, 10) for _ in range(2))
    held, go_on = threading.Event(), threading.Event()
    plain = sa.engine.Connection.execute

    def execute(self: Any, *arguments: Any, **more: Any) -> Any:
        result = plain(self, *arguments, **more)
        if threading.current_thread().name == "still":
            held.set()
            go_on.wait(10)
        return result

    monkeypatch.setattr(sa.engine.Connection, "execute", execute)
    still = threading.Thread(target=lambda: budget.request().__enter__(), name="still", daemon=True)
    still.start()
    assert held.wait(10)
    waiting = threading.Thread(target=lambda: other.request().__enter__(), daemon=True)
    waiting.start()
    waiting.join(3)
    was_permitted = not waiting.is_alive()
    go_on.set()
    for thread in (still, waiting):
        thread.join(10)
    assert was_permitted


def test_a_database_that_is_gone_is_said_to_be(tmp_path) -> None:
    with EmbeddedServer(tmp_path / "postgres") as server:
        url: URL = server.url
        database = Database(url)
        administer(
            url, "create schema cliniko", "create table cliniko.request_budgets (key_digest text)",
            "create function cliniko.take_requests(text, int, int, float8, float8, float8, float8, bigint[], float8[])"
            " returns table (ticket bigint, wait_seconds float8, requests_left int, is_crowded bool) language sql"
            " as 'select 1::bigint, 0::float8, 5, false'",
        )  # fmt: skip
        budget = SharedRequestBudget(database, "key", 10)
        with budget.request():
            pass
        with ExitStack() as stack:
            under_way = stack.enter_context(budget.request())
            assert under_way == 0.0
    with pytest.raises(DatabaseUnavailableError), budget.request():
        pytest.fail("it was permitted")
    with pytest.raises(DatabaseUnavailableError):
        budget.block(5)
    with pytest.raises(DatabaseUnavailableError):
        budget.close()
    database.close()


def test_the_organizations_role_can_neither_read_nor_take_budgets(module_database) -> None:
    for attempt in (
        "select * from cliniko.request_budgets",
        "select * from cliniko.take_requests('key', 1, 1, 60, 120, 900, 600, '{}', '{}')",
    ):
        with pytest.raises(ClinikoPipelineError), module_database.organization("one") as connection:
            connection.exec_driver_sql(attempt)
