"""How much of the request budget syncs use, and whether they ever ask for more: ten minutes of real time.

`make benchmark-budgets` takes twelve minutes and hardly any CPU: five cases go on at the same time, each with a
database and a simulated Cliniko of its own, which allows 200 requests in any minute and answers after half a second and
up to 0.3 seconds more. In each, processes with one API key read an account again and again. `--minutes 2` is a quick
try.
"""

import argparse
import math
import multiprocessing
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import httpx
import psycopg
from rich.table import Table

from benchmarks.telling import CONSOLE, machine
from cliniko_pipeline.cliniko import GROUP_APPOINTMENTS, INDIVIDUAL_APPOINTMENTS, PATIENTS, ClinikoClient, Resource
from cliniko_pipeline.cliniko.events import Event, Waiting
from cliniko_pipeline.cliniko.throttle import digest_of
from cliniko_pipeline.postgres import schema
from cliniko_pipeline.postgres.embedded import EmbeddedServer
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.request_budgets import SharedRequestBudget
from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline.sandbox.generated import generated_account
from cliniko_pipeline.sandbox.server import Sandbox, running_sandbox

MINUTES = 10
REQUESTS_PER_MINUTE = 200
FAULTS = Faults(latency_ms=500, jitter_ms=300)
PATIENTS_AND_APPOINTMENTS = (10_000, 40_000)
LEAST_USED = 0.97
RESOURCES: tuple[Resource[Any], ...] = (PATIENTS, INDIVIDUAL_APPOINTMENTS, GROUP_APPOINTMENTS)


@dataclass(frozen=True)
class Case:
    """What goes on with one key.

    `killed_after`: a share of the time, after which one of the processes is killed. `other_every_seconds`: another
    program sends a request with the key so often, whatever anybody says; in `other_bursts` of so many at once.
    """

    name: str
    processes: int
    killed_after: float | None = None
    other_every_seconds: float | None = None
    other_bursts: int = 1

    @property
    def is_alone(self) -> bool:
        """Whether nothing else uses the key."""
        return self.other_every_seconds is None


CASES = (
    Case("one process", 1),
    Case("three processes", 3),
    Case("three processes, one is killed", 3, killed_after=0.35),
    Case("two processes, another program sends a request each second", 2, other_every_seconds=1.0),
    Case("two processes, another program sends 100 requests at once every 31 seconds", 2, None, 31.0, 100),
)


@dataclass(frozen=True)
class RateLimited:
    """A 429 that one of our processes got, and when the wait it asked for was over; UNIX seconds."""

    process: int
    at: float
    until: float


@dataclass
class Running:
    """A case that goes on: its parts, and what they have told."""

    case: Case
    sandbox: Sandbox
    database_url: str
    api_url: str
    api_key: str
    account: str
    processes: list[SpawnProcess] = field(default_factory=list[SpawnProcess])
    rate_limited: list[RateLimited] = field(default_factory=list[RateLimited])
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Result:
    """What a case has come to. `answered` are the requests within the time that were not refused."""

    case: Case
    answered: int
    allowed: float
    busiest: int
    rate_limited: int
    first_window: int
    later_windows: int

    @property
    def used(self) -> float:
        """The share of the budget."""
        return self.answered / self.allowed


def main() -> int:
    """Measures and prints; the exit code is 1 where a promise is not kept."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was started, too
    parser = argparse.ArgumentParser(description="How much of the request budget is used.")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="default: %(default)s")
    seconds = parser.parse_args().minutes * 60
    with tempfile.TemporaryDirectory(prefix="cliniko-budgets-") as folder, ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer(Path(folder) / "postgres"))
        running = [_started(case, server, stack) for case in CASES]
        ends = [_case(each, seconds, stack) for each in running]
        _tell_progress(seconds)
        for end in ends:
            end.join()
        results = [_result(each, seconds) for each in running]
        versions = _versions(server)
    return report(results, versions, seconds)


def report(results: Sequence[Result], versions: str, seconds: float) -> int:
    """Prints the table and whether what is promised holds; the exit code."""
    CONSOLE.print(versions, highlight=False)
    CONSOLE.print(f"{seconds / 60:g} minutes; answers after 500 to 800 ms", highlight=False)
    table = Table()
    table.add_column("with one key")
    for heading in ("answered", "used", "busiest minute", "429s", "in the first window*", "in a later one*"):
        table.add_column(heading, justify="right")
    for one in results:
        table.add_row(
            one.case.name,
            f"{one.answered:,}",
            f"{one.used:.1%}",
            str(one.busiest),
            str(one.rate_limited),
            str(one.first_window),
            str(one.later_windows),
        )
    CONSOLE.print(table)
    CONSOLE.print("* the most that one process got before the wait that the first of them asked for was over")
    promises: list[tuple[str, bool]] = []
    for one in results:
        if one.case.is_alone:
            promises.append((f"{one.case.name}: at least {LEAST_USED:.0%} used", one.used >= LEAST_USED))
            promises.append((f"{one.case.name}: no 429", one.rate_limited == 0))
        else:
            promises.append((f"{one.case.name}: one 429 in the first window", one.first_window <= 1))
            promises.append((f"{one.case.name}: one 429 in each later window", one.later_windows <= 1))
    for text, is_kept in promises:
        CONSOLE.print(f"{text}: {'met' if is_kept else 'NOT MET'}", highlight=False)
    return 0 if all(is_kept for _, is_kept in promises) else 1


def _started(case: Case, server: EmbeddedServer, stack: ExitStack) -> Running:
    account = generated_account(*PATIENTS_AND_APPOINTMENTS, 1, datetime.now(UTC))
    sandbox = stack.enter_context(running_sandbox([account], requests_per_minute=REQUESTS_PER_MINUTE, faults=FAULTS))
    name = f"case_{CASES.index(case)}"
    with psycopg.connect(_for_psycopg(server), autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    url = server.url.set(database=name)
    database = Database(url)
    schema.migrate(database, create_application_tables=True)
    database.close()
    return Running(
        case,
        sandbox,
        url.render_as_string(hide_password=False),
        sandbox.base_url(account),
        account.api_key,
        account.name,
    )


def _case(running: Running, seconds: float, stack: ExitStack) -> threading.Thread:
    """Starts it all; the thread has ended when the time is over."""
    context = multiprocessing.get_context("spawn")
    told, tell = context.Pipe(duplex=False)
    for number in range(running.case.processes):
        process = context.Process(
            target=_read_again_and_again,
            args=(number, running.database_url, running.api_url, running.api_key, seconds, tell),
            daemon=True,
        )
        process.start()
        running.processes.append(process)
        stack.callback(process.kill)

    def go() -> None:
        _wait_for_first_request(running)
        begun = time.monotonic()
        if running.case.other_every_seconds is not None:
            threading.Thread(target=_other_program, args=(running,), daemon=True).start()
        killed_after = running.case.killed_after
        if killed_after is not None:
            time.sleep(seconds * killed_after)
            running.processes[-1].kill()
        time.sleep(max(0.0, begun + seconds - time.monotonic()))
        running.ended.set()
        for each in running.processes:
            each.kill()
        while told.poll():
            running.rate_limited.append(told.recv())

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    return thread


def _wait_for_first_request(running: Running) -> None:
    while not running.sandbox.counters.recorded:
        time.sleep(0.01)


def _read_again_and_again(
    number: int, database_url: str, api_url: str, api_key: str, seconds: float, tell: Connection
) -> None:
    """One of our processes: syncs without the writing, which would only use this machine's CPU."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    database = Database(database_url)

    def on_event(event: Event) -> None:
        if isinstance(event, Waiting) and "429" in event.reason:
            now = time.time()
            tell.send(RateLimited(number, now, now + event.seconds))

    end = time.monotonic() + seconds + 60
    while time.monotonic() < end:
        budget = SharedRequestBudget(database, digest_of(api_key), REQUESTS_PER_MINUTE)
        with ClinikoClient(
            "clinic",
            api_key,
            api_url,
            "benchmark (benchmark@example.com)",
            budget,
            max_attempts=1000,
            on_event=on_event,
        ) as client:
            for resource in RESOURCES:
                for _ in client.crawl(resource):
                    pass


def _other_program(running: Running) -> None:
    """Uses the key as if nobody else did."""
    every, burst = running.case.other_every_seconds or 1.0, running.case.other_bursts
    with httpx.Client(
        auth=(running.api_key, ""), headers={"Accept": "application/json", "User-Agent": "other (other@example.com)"}
    ) as http:
        while not running.ended.wait(every):
            threads = [
                threading.Thread(target=http.get, args=(f"{running.api_url}/practitioners?per_page=1",), daemon=True)
                for _ in range(burst)
            ]
            for each in threads:
                each.start()
            for each in threads:
                each.join()


def _result(running: Running, seconds: float) -> Result:
    recorded = [one for one in running.sandbox.counters.recorded if one.account == running.account]
    begun = min(one.at for one in recorded)
    within = [one for one in recorded if one.at < begun + seconds]
    first, later = _most_in_a_window(running.rate_limited)
    return Result(
        running.case,
        answered=sum(one.status != 429 for one in within),
        allowed=REQUESTS_PER_MINUTE * seconds / 60,
        busiest=_busiest_minute([one.at for one in recorded if one.status != 429]),
        rate_limited=len(running.rate_limited),
        first_window=first,
        later_windows=later,
    )


def _busiest_minute(moments: Sequence[float]) -> int:
    moments = sorted(moments)
    most, oldest = 0, 0
    for newest, at in enumerate(moments):
        while moments[oldest] <= at - 60:
            oldest += 1
        most = max(most, newest - oldest + 1)
    return most


def _most_in_a_window(rate_limited: Sequence[RateLimited]) -> tuple[int, int]:
    """The most 429s that one process got in its first window, and in any later one."""
    first, later = 0, 0
    for process in {one.process for one in rate_limited}:
        windows: list[int] = []
        until = -math.inf
        for one in sorted((one for one in rate_limited if one.process == process), key=lambda one: one.at):
            if one.at >= until:
                windows.append(0)
                until = one.until
            windows[-1] += 1
        first, later = max(first, windows[0]), max([later, *windows[1:]])
    return first, later


def _tell_progress(seconds: float) -> None:
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < seconds:
        CONSOLE.print(
            f"{datetime.now(UTC):%H:%M:%S} minute {passed / 60:.0f} of {seconds / 60:g} ...",
            style="dim",
            highlight=False,
        )
        time.sleep(min(60.0, seconds - passed))


def _for_psycopg(server: EmbeddedServer) -> str:
    return server.url.set(drivername="postgresql").render_as_string(hide_password=False)


def _versions(server: EmbeddedServer) -> str:
    with psycopg.connect(_for_psycopg(server)) as connection:
        return machine(connection.info.parameter_status("server_version") or "")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
