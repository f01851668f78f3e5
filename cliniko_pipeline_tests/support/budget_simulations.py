"""Simulation of processes that share a request budget, in one thread, with a real database and simulated time."""

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import request_budgets
from cliniko_pipeline.postgres.operator_tables.request_budgets import SharedRequestBudget
from cliniko_pipeline_tests.support.databases import administer

WINDOW = 60.0


@dataclass
class Sent:
    """A request. `answered` is infinity until the response arrives."""

    permitted: float
    answered: float = float("inf")


def max_in_a_window(sent: Iterable[Sent]) -> int:
    """Return the most requests that Cliniko can count within a window.

    Cliniko may count a request at any time between its permission and its response.
    """
    # The subtracted microseconds allow for the rounding of the database.
    changes = [(request.permitted, 1) for request in sent]
    changes += [(request.answered + WINDOW - 5e-6, -1) for request in sent]
    return max(itertools.accumulate(change for _, change in sorted(changes)), default=0)


class WouldSleep(Exception):  # noqa: N818 (not an error)
    """A process would sleep, and the simulation continues it later."""

    def __init__(self, seconds: float) -> None:
        assert 0 < seconds <= request_budgets.LONGEST_SLEEP_SECONDS
        self.seconds = seconds


def would_sleep(seconds: float) -> None:
    raise WouldSleep(seconds)


class MovableClock:
    """The clock of PostgreSQL and of all processes, in seconds since the start. Budgets use it as their database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = 0.0
        self.set_back = 0.0
        self._in_database: float | None = None
        self._set_database()

    def read(self) -> float:
        return self.now

    @contextmanager
    def operator_statement(self) -> Iterator[Connection]:
        if self._in_database != self.now - self.set_back:
            self._set_database()
        with self.database.operator_statement() as connection:
            yield connection

    def _set_database(self) -> None:
        self._in_database = self.now - self.set_back
        with self.database.operator_statement() as connection:
            connection.execute(
                sa.text("update movable.clock set now = timestamptz '2026-06-15Z' + make_interval(secs => :now)"),
                {"now": self._in_database},
            )


@contextmanager
def movable_database(url: URL) -> Iterator[Database]:
    """Open the database with its own `clock_timestamp`, which comes first in the search path."""
    administer(
        url,
        "create schema movable",
        "create table movable.clock (now timestamptz not null)",
        "insert into movable.clock values ('2026-06-15Z')",
        "create function movable.clock_timestamp() returns timestamptz language sql as 'select now from movable.clock'",
    )
    options = "-csearch_path=movable,pg_catalog -csynchronous_commit=off"
    database = Database(url.update_query_dict({"options": options}))
    yield database
    database.close()


class Process:
    """A simulated process, with one budget for all its threads."""

    def __init__(self, clock: MovableClock, limit: int, key: str | None = None) -> None:
        self.clock = clock
        self.key = key or uuid4().hex
        self.budget = SharedRequestBudget(cast("Any", clock), self.key, limit, sleep=would_sleep, clock=clock.read)
        self.sent: list[Sent] = []
        self.requests: list[Request] = []
        self.is_killed = False

    def ask(self) -> "Request | float":
        """Return a permitted request, or the seconds to sleep before the next attempt."""
        permission = self.budget.request()
        try:
            permission.__enter__()
        except WouldSleep as asleep:
            return asleep.seconds
        sent = Sent(self.clock.now)
        self.sent.append(sent)
        # The permission is kept, because garbage collection would give it back.
        self.requests.append(Request(self, sent, permission))
        return self.requests[-1]

    def may_send(self) -> bool:
        """Start a request if the budget permits it. Return whether the request was started."""
        return isinstance(self.ask(), Request)

    def begin(self) -> "Request":
        """Start a request, which the budget must permit."""
        outcome = self.ask()
        assert isinstance(outcome, Request)
        return outcome

    def send(self) -> float:
        """Wait until a request is permitted, and answer the request immediately. Return the seconds waited."""
        started = self.clock.now
        while isinstance(outcome := self.ask(), float):
            self.clock.now += outcome
        outcome.answer()
        return self.clock.now - started


@dataclass
class Request:
    """A request in flight."""

    process: Process
    sent: Sent
    permission: AbstractContextManager[float]

    def answer(self) -> None:
        self.sent.answered = self.process.clock.now
        if not self.process.is_killed:
            self.permission.__exit__(None, None, None)


@dataclass(frozen=True)
class Plan:
    """The work of a process. A thread has pairs of a pause and the latency of the next response."""

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
        """Run the plans and the blocks, which are pairs of a moment and seconds. Return all requests."""
        self.clock.now = 0.0
        processes = [Process(self.clock, self.limit, self.key) for _ in plans]
        for process, plan in zip(processes, plans, strict=True):
            for work in plan.threads:
                self._work(process, iter(work))
            if plan.killed_at is not None:
                self._after(plan.killed_at, lambda process=process: setattr(process, "is_killed", True))
            if plan.closed_at is not None:
                self._after(plan.closed_at, lambda process=process: process.is_killed or process.budget.close())
        for at, seconds in blocks:
            self._after(at, lambda seconds=seconds: processes[0].budget.block(seconds))
        while self.events:
            self.clock.now, _, happens = heapq.heappop(self.events)
            happens()
        return [request for process in processes for request in process.sent]

    def _after(self, seconds: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.clock.now + seconds, next(self.numbers), happens))

    def _work(self, process: Process, left: Iterator[tuple[float, float]]) -> None:
        if step := next(left, None):
            pause, latency = step
            self._after(pause, lambda: self._ask(process, left, latency))

    def _ask(self, process: Process, left: Iterator[tuple[float, float]], latency: float) -> None:
        if process.is_killed:
            return
        outcome = process.ask()
        if isinstance(outcome, float):
            self._after(outcome, lambda: self._ask(process, left, latency))
            return
        self._after(latency, lambda: (outcome.answer(), self._work(process, left))[0])
