"""Benchmark of the request budget: how much of it syncs use, and whether they get status 429.

Five cases run at the same time and need hardly any CPU. Each case has a database and a simulated Cliniko, which allows
200 requests in any minute and responds after 500 to 800 ms. The processes of a case crawl one account repeatedly with
one API key. `budgets --minutes 2` is a quick try.
"""

import argparse
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import Any

import httpx

from benchmarks.fixtures.databases import Server, libpq_url, running_server
from benchmarks.fixtures.processes import spawned, wait_until
from benchmarks.reporting import Benchmark, Report, Target, progress, table
from cliniko_pipeline.cliniko.client import ClinikoClient
from cliniko_pipeline.cliniko.events import Event, Waiting
from cliniko_pipeline.cliniko.exchange.sender import Access, RequestOptions
from cliniko_pipeline.cliniko.exchange.throttle import digest_of
from cliniko_pipeline.cliniko.records import GROUP_APPOINTMENTS, INDIVIDUAL_APPOINTMENTS, PATIENTS, Resource
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables.request_budgets import SharedRequestBudget
from cliniko_pipeline.sandbox.accounts.generated import generated_account
from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline.sandbox.server import running_sandbox

REQUESTS_PER_MINUTE = 200
FAULTS = Faults(latency_ms=500, jitter_ms=300)
ACCOUNT_SIZE = (10_000, 40_000)
MIN_USED = 0.97
START_SECONDS = 120
RESOURCES: tuple[Resource[Any], ...] = (PATIENTS, INDIVIDUAL_APPOINTMENTS, GROUP_APPOINTMENTS)

BENCHMARK = Benchmark(
    measures="use of 200 requests a minute, by one process and several, and 429s",
    duration="twelve minutes of waiting",
    targets=(f"at least {MIN_USED:.0%} used, no 429", "with another program's requests: one 429 in a window"),
    needs_linux=False,
    options={"--minutes": (10.0, "duration of the measurement")},
)


@dataclass(frozen=True)
class Case:
    """The programs that use one API key.

    Attributes:
        killed_after: share of the measured time after which one of the processes is killed.
        other_interval: seconds between bursts of another program, which ignores the budget.
        other_burst: number of requests in a burst.
    """

    name: str
    processes: int
    killed_after: float = 1.0
    other_interval: float | None = None
    other_burst: int = 1


CASES = (
    Case("one process", 1),
    Case("three processes", 3),
    Case("three processes, one is killed", 3, killed_after=0.35),
    Case("two processes, another program sends a request each second", 2, other_interval=1),
    Case(
        "two processes, another program sends 100 requests at once every 31 seconds",
        2,
        other_interval=31,
        other_burst=100,
    ),
)


@dataclass(frozen=True)
class RateLimited:
    """A response with status 429. `until` is the end of the requested wait; both times are UNIX seconds."""

    at: float
    until: float


@dataclass(frozen=True)
class Result:
    """The measurement of one case. Only 429s of the case's own processes are counted."""

    case: Case
    answered: int
    used: float
    busiest_minute: int
    rate_limited: int
    first_window: int
    later_windows: int


def run(options: argparse.Namespace, report: Report) -> None:
    """Measure all cases at the same time and report."""
    seconds = options.minutes * 60
    cases = _Cases(seconds)
    with running_server() as server, ThreadPoolExecutor(len(CASES)) as executor:
        try:
            measured = [executor.submit(cases.measure, server, case) for case in CASES]
            results = [result.result() for result in measured]
        finally:
            cases.stop()
        report.show_machine(server.version)
    report.show(f"{seconds / 60:g} minutes; responses after 500 to 800 ms")
    rows = [(result.case.name, *astuple(result)[1:]) for result in results]
    headings = ("busiest minute", "429s", "in the first window*", "in a later one*")
    columns = [
        ("with one key", "{}"),
        ("answered", "{:,}"),
        ("used", "{:.1%}"),
        *((heading, "{}") for heading in headings),
    ]
    report.show(table(columns, rows))
    report.show("* most 429s of one process; a window lasts until the end of the wait that its first 429 requested")
    report.show_verdicts(target for result in results for target in _targets(result))


def _targets(result: Result) -> Sequence[Target]:
    name = result.case.name
    if result.case.other_interval is None:
        return (
            Target(f"{name}: share of the budget used", result.used, MIN_USED, at_least=True),
            Target(f"{name}: 429s", result.rate_limited, 0),
        )
    return (
        Target(f"{name}: 429s in the first window", result.first_window, 1),
        Target(f"{name}: 429s in a later window", result.later_windows, 1),
    )


class _Cases:
    """Measurement of cases in threads that begin together."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ready = threading.Barrier(len(CASES), action=lambda: progress(f"Measuring for {seconds / 60:g} minutes"))
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End all cases now."""
        self._stopped.set()
        self._ready.abort()

    def measure(self, server: Server, case: Case) -> Result:
        """Run a case and return its measurement."""
        account = generated_account(*ACCOUNT_SIZE, 1, datetime.now(UTC))
        rate_limited: list[list[RateLimited]] = []
        ended = threading.Event()
        with (
            server.database() as database,
            running_sandbox([account], requests_per_minute=REQUESTS_PER_MINUTE, faults=FAULTS) as sandbox,
            ExitStack() as crawlers,
        ):
            api_url = sandbox.base_url(account)
            self._ready.wait()
            crawl = (_crawl_repeatedly, libpq_url(database.url), api_url, account.api_key)
            started = [crawlers.enter_context(spawned(*crawl)) for _ in range(case.processes)]
            wait_until(lambda: sandbox.counters.recorded, START_SECONDS, f"the first request: {case.name}", 0.01)
            if case.other_interval is not None:
                other = threading.Thread(target=_request_without_budget, args=(case, api_url, account.api_key, ended))
                other.start()
                crawlers.callback(other.join)
            crawlers.callback(ended.set)
            self._stopped.wait(self._seconds * case.killed_after)
            started[-1][0].kill()
            self._stopped.wait(self._seconds * (1 - case.killed_after))
            for process, connection in started:
                process.kill()
                rate_limited.append([])
                with suppress(EOFError):
                    while True:
                        rate_limited[-1].append(connection.recv())
            recorded = [(request.at, request.status) for request in sandbox.counters.recorded]
        begin = min(at for at, _ in recorded)
        answered = sum(status != 429 and at < begin + self._seconds for at, status in recorded)
        windows = [_windows(responses) for responses in rate_limited if responses]
        return Result(
            case,
            answered,
            answered / (REQUESTS_PER_MINUTE * self._seconds / 60),
            _busiest_minute(sorted(at for at, status in recorded if status != 429)),
            sum(map(len, rate_limited)),
            max((first for first, *_ in windows), default=0),
            max((most for _, *later in windows for most in later), default=0),
        )


def _crawl_repeatedly(connection: Connection, database_url: str, api_url: str, api_key: str) -> None:
    """Crawl the account as syncs do, without writing records, until killed. Send each 429 to the connection."""

    def send_rate_limited(event: Event) -> None:
        if isinstance(event, Waiting) and "429" in event.reason:
            now = time.time()
            connection.send(RateLimited(now, now + event.seconds))

    database = Database(database_url)
    user_agent = "benchmark (benchmark@example.com)"
    while True:
        budget = SharedRequestBudget(database, digest_of(api_key), REQUESTS_PER_MINUTE)
        with ClinikoClient(
            "clinic",
            Access(api_key, api_url, user_agent),
            budget,
            options=RequestOptions(max_attempts=1000),
            on_event=send_rate_limited,
        ) as client:
            for resource in RESOURCES:
                for _ in client.crawl(resource):
                    pass


def _request_without_budget(case: Case, api_url: str, api_key: str, ended: threading.Event) -> None:
    headers = {"Accept": "application/json", "User-Agent": "other (other@example.com)"}
    url = f"{api_url}/practitioners?per_page=1"
    with (
        httpx.Client(auth=(api_key, ""), headers=headers) as http,
        ThreadPoolExecutor(case.other_burst) as executor,
    ):
        while not ended.wait(case.other_interval):
            for answer in [executor.submit(http.get, url) for _ in range(case.other_burst)]:
                answer.result()


def _busiest_minute(moments: Sequence[float]) -> int:
    """Return the largest number of requests within 60 seconds. `moments` must be sorted."""
    most, oldest = 0, 0
    for newest, at in enumerate(moments):
        while moments[oldest] <= at - 60:
            oldest += 1
        most = max(most, newest - oldest + 1)
    return most


def _windows(rate_limited: Sequence[RateLimited]) -> list[int]:
    """Return the number of 429s in each window. A window lasts as long as its first 429 asks to wait."""
    windows: list[int] = []
    until = -math.inf
    for limited in rate_limited:
        if limited.at >= until:
            windows.append(0)
            until = limited.until
        windows[-1] += 1
    return windows
