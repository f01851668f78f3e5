"""Benchmark of the first sync of an account, compared with dlt, a plain loop and hand-written floors.

A floor is a program that does only the unavoidable work. The benchmark needs 2 GB of memory and 2 GB of disk under
TMPDIR. The simulated Cliniko responds at once in a first series, and after 100 ms in a second series. Each contender
(see `benchmarks.others`) runs in a fresh process on a fresh database of the same server. The order changes with each
round. `syncs --patients 1000 --appointments 5000` is a quick try. `--docs` renews the charts in docs/.

The measured time excludes the start of the process. All contenders must store the same rows.
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import sqlalchemy as sa
from rich.table import Table

from benchmarks.fixtures.databases import Server, libpq_url, running_server
from benchmarks.fixtures.processes import cpu_seconds, machine_cpu_seconds, run_fresh, server_cpu_seconds
from benchmarks.fixtures.sandboxes import SandboxProcess, sandbox_process
from benchmarks.measuring import Taken, median_of, noted, seconds_range
from benchmarks.others.tasks import Task
from benchmarks.reporting import Benchmark, BenchmarkError, Report, Target, table
from benchmarks.sync_charts import Bar, Chart, as_svg
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.tables import APPOINTMENTS, PATIENTS
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline.sandbox.server import Sandbox

MAX_SECONDS = 1800

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "benchmarks.md"
PICTURES = ROOT / "docs" / "images"
BEGIN, END = "<!-- benchmark-syncs: begin -->\n", "<!-- benchmark-syncs: end -->\n"

BENCHMARK = Benchmark(
    measures="first syncs beside dlt, a plain loop and hand-written floors",
    duration="twenty minutes",
    targets=(
        "at most 1.5 times the fastest floor's seconds (1.3 with latency), at most 250 MB",
        "dlt takes 15 times the seconds (8 with latency) and 10 times the CPU seconds, a plain loop 10 times",
    ),
    options={
        "--patients": (20_000, "of the account"),
        "--appointments": (100_000, "of the account"),
        "--latencies": ((0, 100), "milliseconds until the simulated Cliniko answers"),
        "--rounds": (3, "of ours and the floors"),
        "--rounds-of-slow": (1, "of dlt and the plain loop"),
        "--only": ((), "contenders whose module contains a word: ours, floors, plain_loop, dlt"),
        "--docs": (False, "put the charts into docs/"),
    },
)


@dataclass(frozen=True)
class Contender:
    """A program that reads the account.

    Attributes:
        name: name of the contender in tables.
        module: module of `benchmarks.others`; a variant follows after a slash.
        patients: table in which the contender stores patients, if any.
        appointments: table in which the contender stores appointments, if any.
        has_our_columns: whether these tables have the pipeline's columns, and so must have the same rows.
        is_slow: whether the contender takes minutes.
    """

    name: str
    module: str
    patients: str | None = None
    appointments: str | None = None
    has_our_columns: bool = True
    is_slow: bool = False


def _floor(name: str, client: str) -> tuple[Contender, Contender]:
    tables = ("written_by_hand.patients", "written_by_hand.appointments")
    return (
        Contender(f"COPY, {name}", f"floors/{client}-copy", *tables),
        Contender(f"download, {name}", f"floors/{client}-download"),
    )


OURS = Contender("ours", "ours", "cliniko.patients", "cliniko.appointments")
DLT = Contender("dlt", "dlt_rest_api", "by_dlt.patients", "by_dlt.individual_appointments", False, is_slow=True)
PLAIN = Contender("plain loop", "plain_loop", "written_by_hand.patients", "written_by_hand.appointments", is_slow=True)
_FLOORS = (_floor("asyncio streams", "streams"), _floor("aiohttp", "aiohttp"), _floor("pycurl", "pycurl"))
COPYING = tuple(copying for copying, _ in _FLOORS)
DOWNLOADING = tuple(downloading for _, downloading in _FLOORS)
CONTENDERS = (OURS, *COPYING, *DOWNLOADING, PLAIN, DLT)


@dataclass(frozen=True)
class Medians:
    """The measurements of a contender at one latency. `others` has the CPU seconds of other processes by owner."""

    contender: Contender
    all_taken: Sequence[Taken]
    others: Mapping[str, float]

    @property
    def taken(self) -> Taken:
        """The median of each figure."""
        return median_of(self.all_taken)


def run(options: argparse.Namespace, report: Report) -> None:
    """Measure all contenders at all latencies, and report."""
    contenders = [
        contender
        for contender in CONTENDERS
        if not options.only or any(word in contender.module for word in options.only)
    ]
    packages = ["dagster", "httpx", "msgspec", "psycopg", "aiohttp"]
    if any(contender != OURS for contender in contenders):
        if not all(map(find_spec, ("dlt", "pycurl", "requests"))):
            raise BenchmarkError("it needs benchmarks/requirements.txt: run `make benchmark ARGS=syncs`")
        packages += ["pycurl", "requests", "dlt"]
    size = f"{options.patients:,} patients and {options.appointments:,} appointments"
    with running_server() as server, sandbox_process(options.patients, options.appointments) as sandbox:
        course = _Course(server, sandbox, options.patients, options.appointments)
        medians = {latency: _measure(course, contenders, latency, options) for latency in options.latencies}
        report.show_machine(server.version, *packages)
    for latency, found in medians.items():
        report.show(_table(found, f"{size}, answered {_latency(latency)}"))
    report.show_verdicts(_targets(medians))
    if options.docs:
        _write_docs(medians, size)


# Measuring.


def _measure(
    course: "_Course", contenders: Sequence[Contender], latency: int, options: argparse.Namespace
) -> list[Medians]:
    """Measure all contenders. Each round begins with another contender."""
    course.sandbox.apply(partial(_set_latency, latency))
    found: dict[Contender, list[tuple[Taken, dict[str, float]]]] = {contender: [] for contender in contenders}
    for number in range(max(options.rounds, options.rounds_of_slow)):
        first = number * len(contenders) // max(1, options.rounds)
        for contender in [*contenders[first:], *contenders[:first]]:
            if number < (options.rounds_of_slow if contender.is_slow else options.rounds):
                taken, others = course.measure(contender)
                noted(f"Answered {_latency(latency)}, round {number + 1}: {contender.name}", taken)
                found[contender].append((taken, others))
    return [
        Medians(contender, [taken for taken, _ in measured], _medians_by_name([others for _, others in measured]))
        for contender, measured in found.items()
        if measured
    ]


def _medians_by_name(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: median(by_name[name] for by_name in figures) for name in figures[0]}


def _set_latency(latency: int, sandbox: Sandbox, _account: Account) -> None:
    sandbox.faults = Faults(latency_ms=latency)


class _Course:
    """The simulated Cliniko and the PostgreSQL server that all contenders use."""

    def __init__(self, server: Server, sandbox: SandboxProcess, patients: int, appointments: int) -> None:
        self.sandbox = sandbox
        self._server = server
        self._counts = [patients, appointments]
        self._stored: list[str] = []

    def measure(self, contender: Contender) -> tuple[Taken, dict[str, float]]:
        """Run a first sync. Return its measurement, and the CPU seconds of other processes by owner."""
        account = self.sandbox.account
        with self._server.database() as database:
            self._server.execute("checkpoint")  # so that no pages of the previous measurement are left to write
            folder = self._server.home / "contenders" / str(database.url.database)
            folder.mkdir(parents=True)
            task = Task(
                account.api_url, account.api_key, account.host, libpq_url(database.url), str(folder), *self._counts
            )
            # Without these variables, dlt would send telemetry and keep its state in the user's home.
            environ = {"RUNTIME__DLTHUB_TELEMETRY": "false", "DLT_DATA_DIR": str(folder)}
            module, _, variant = contender.module.partition("/")
            before = self._cpu()
            taken: Taken = run_fresh(
                f"benchmarks.others.{module}:run",
                task,
                *([variant] if variant else []),
                environ=environ,
                folder=folder,
                seconds=MAX_SECONDS,
            )
            # The difference can be negative, because /proc no longer shows processes that have ended.
            spent = {name: max(0.0, seconds - before[name]) for name, seconds in self._cpu().items()}
            self._require_same(contender, database)
        all_cpu, contender_cpu = spent.pop("all"), spent.pop("contender")
        return taken, spent | {"all else": max(0.0, all_cpu - contender_cpu - sum(spent.values()))}

    def _require_same(self, contender: Contender, database: Database) -> None:
        """Raise BenchmarkError if records are missing or differ from those of the previous contenders."""
        if contender.patients is None or contender.appointments is None:
            return
        tables = {contender.patients: PATIENTS, contender.appointments: APPOINTMENTS}
        with database.operator() as connection:

            def scalar(statement: str) -> Any:
                return connection.execute(sa.text(statement)).scalar_one()

            counts = [scalar(f"select count(distinct id) from {name}") for name in tables]  # noqa: S608 (names above)
            if counts != self._counts:
                raise BenchmarkError(f"{contender.name} stored {counts[0]} patients and {counts[1]} appointments")
            found = [str(scalar(f"select count(cancelled_at) from {contender.appointments}"))]  # noqa: S608
            if contender.has_our_columns:
                for name, columns in tables.items():
                    row = f"({', '.join(columns.written)})::text"
                    found.append(scalar(f"select md5(string_agg(md5({row}), '' order by id)) from {name}"))  # noqa: S608
        if found != (self._stored or found)[: len(found)]:
            raise BenchmarkError(f"{contender.name} did not store the same as the contenders before it")
        self._stored = max(self._stored, found, key=len)

    def _cpu(self) -> dict[str, float]:
        """Return the CPU seconds so far by owner."""
        ended = os.times()
        return {
            "PostgreSQL": server_cpu_seconds(self._server.home),
            "Cliniko": sum(cpu_seconds(self.sandbox.process)),
            "contender": ended.children_user + ended.children_system,
            "all": machine_cpu_seconds(),
        }


# Reporting.


def _targets(medians: Mapping[int, Sequence[Medians]]) -> list[Target]:
    targets: list[Target] = []
    for latency, found in medians.items():
        taken = {measured.contender: measured.taken for measured in found}
        if OURS not in taken:
            continue
        ours = taken[OURS]

        def add(
            claim: str, figure: float, limit: float, *, at_least: bool = False, when: str = _latency(latency)
        ) -> None:
            targets.append(Target(f"Answered {when}: {claim}", figure, limit, at_least=at_least))

        if floors := [taken[contender].seconds for contender in COPYING if contender in taken]:
            add("seconds of ours / of the fastest COPY", ours.seconds / min(floors), 1.3 if latency else 1.5)
        if DLT in taken:
            add("seconds of dlt / of ours", taken[DLT].seconds / ours.seconds, 8 if latency else 15, at_least=True)
            if not latency:
                add("CPU seconds of dlt / of ours", taken[DLT].cpu / ours.cpu, 10, at_least=True)
        if PLAIN in taken and not latency:
            add("seconds of the plain loop / of ours", taken[PLAIN].seconds / ours.seconds, 10, at_least=True)
        add("peak of ours, MB", ours.peak, 250)
    return targets


def _table(found: Sequence[Medians], title: str) -> Table:
    """Return a table of medians and of their ratios to the pipeline's medians."""
    ours = next((measured.taken for measured in found if measured.contender == OURS), None)
    columns = [("", "{}"), ("rounds", "{}"), ("seconds", "{:.2f}"), ("from to", "{}"), ("of ours", "{:.2f}")]
    columns += [("CPU seconds", "{:.2f}"), ("of ours", "{:.2f}"), ("peak", "{:.0f} MB")]
    columns += [(f"CPU of {name}", "{:.1f}") for name in found[0].others]
    rows: list[tuple[object, ...]] = []
    for measured in found:
        taken, seconds, cpu = measured.taken, None, None
        if ours:
            seconds, cpu = taken.seconds / ours.seconds, taken.cpu / ours.cpu
        first = (
            measured.contender.name,
            len(measured.all_taken),
            taken.seconds,
            seconds_range(measured.all_taken),
            seconds,
        )
        rows.append((*first, taken.cpu, cpu, taken.peak, *measured.others.values()))
    return table(columns, rows, title)


def _write_docs(medians: Mapping[int, Sequence[Medians]], size: str) -> None:
    """Replace the charts, and the part of the document between the marks."""
    parts = ["", ""]
    for latency, found in medians.items():
        picture = f"benchmark-syncs-{latency}ms.svg"
        title = f"First sync of {size}, answered {_latency(latency)}"
        (PICTURES / picture).write_text(as_svg(title, _charts(found)), encoding="utf-8")
        parts += [f"![{title}: seconds, CPU seconds and peak memory](images/{picture})", ""]
    document = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = document.partition(BEGIN)
    after = rest.partition(END)[2]
    shown = "\n".join([*parts, ""])
    DOCUMENT.write_text(f"{before}{BEGIN}{shown}{END}{after}", encoding="utf-8")


def _charts(found: Sequence[Medians]) -> list[Chart]:
    """Return charts of the pipeline, the fastest floor of each kind, the plain loop and dlt."""
    fastest = [
        min(
            (measured for measured in found if measured.contender in floor),
            key=lambda measured: measured.taken.seconds,
            default=None,
        )
        for floor in (DOWNLOADING, COPYING)
    ]
    rest = [
        next((measured for measured in found if measured.contender == wanted), None) for wanted in (OURS, PLAIN, DLT)
    ]
    shown = [measured for measured in (*fastest, *rest) if measured is not None]

    figures: tuple[tuple[str, str, Callable[[Taken], float]], ...] = (
        ("Seconds", "{:.1f}", lambda taken: taken.seconds),
        ("CPU seconds of the process", "{:.1f}", lambda taken: taken.cpu),
        ("Peak memory of the process", "{:.0f} MB", lambda taken: taken.peak),
    )
    charts: list[Chart] = []
    for title, pattern, figure in figures:
        values = [(measured.contender, figure(measured.taken)) for measured in shown]
        bars = [
            Bar(contender.name.partition(",")[0], value, pattern.format(value), contender == OURS)
            for contender, value in values
        ]
        charts.append(Chart(title, bars))
    return charts


def _latency(milliseconds: int) -> str:
    return f"after {milliseconds} ms" if milliseconds else "at once"
