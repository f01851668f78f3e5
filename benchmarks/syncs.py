"""Benchmark of the command `cliniko-pipeline sync`, from its start to its exit, as users wait for it.

It needs 5 GB of memory and 4 GB of disk under TMPDIR. A first sync is compared with an empty Dagster run, also from
start to exit, and with programs that do the same job: hand-written floors, a plain loop and dlt (see
`benchmarks.others`). The start of these programs is not measured. Each contender gets a fresh database, whose tables
have no statistics, and all must have the same results. The order changes with each round. The benchmark also measures
later syncs, a large account, many organizations, `--help` and `status`.

`syncs --patients 1000 --appointments 5000 --rounds 1 --only ours,floors,empty` is a quick try. PostgreSQL's CPU
seconds are those of the whole server.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import sqlalchemy as sa
from rich.table import Table

from benchmarks.fixtures.clinic_data import ORGANIZATION
from benchmarks.fixtures.databases import Server, debian_programs, libpq_url, running_server
from benchmarks.fixtures.homes import PARTS, Home, Measurement, prepared_home
from benchmarks.fixtures.processes import run_fresh, server_cpu_seconds
from benchmarks.fixtures.sandboxes import SandboxProcess, sandbox_process
from benchmarks.measuring import Taken, median_of, noted, seconds_range
from benchmarks.others.floor_tables import SCHEMA
from benchmarks.others.tasks import LARGEST, Task
from benchmarks.reporting import Benchmark, BenchmarkError, Report, Target, table
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS, APPOINTMENTS, PATIENTS
from cliniko_pipeline.sandbox import wire
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline.sandbox.queries import read_query
from cliniko_pipeline.sandbox.resources import RESOURCES
from cliniko_pipeline.sandbox.server import Sandbox

MAX_SECONDS = 1800
SMALL_ACCOUNT = (100, 1_000)
EMBEDDED, DEBIAN = "embedded", "debian"
IMPORTS = "import click, sqlalchemy, psycopg"

BENCHMARK = Benchmark(
    measures="the command sync, compared with floors, a plain loop, dlt, and an empty Dagster run",
    duration="forty minutes",
    targets=(
        "first sync / (fastest floor + empty run): at most 1.5, with latency 1.25; PostgreSQL's CPU / the floor's: 1.8",
        "dlt takes 6 times as long; five times the account at most 5.5 times",
        "one changed record: 1.3 empty runs; 20 organizations: 8 times one; --help, status: 2 times their imports",
    ),
    options={
        "--patients": (20_000, "patients of the account"),
        "--appointments": (100_000, "appointments of the account"),
        "--latencies": ((0, 100), "milliseconds until the simulated Cliniko responds"),
        "--rounds": (3, "rounds, except that dlt and the plain loop have one round with latency"),
        "--servers": ((EMBEDDED, DEBIAN), "PostgreSQL servers; Debian's is skipped if it is not installed"),
        "--large": (5, "factor of the size of the large account; 0 skips this account"),
        "--organizations": (20, "organizations of `sync --all`; 0 skips this command"),
        "--only": ((), "parts of the names to measure: ours, empty, floors, plain_loop, dlt, later, large, many"),
    },
)


@dataclass(frozen=True)
class Contender:
    """A program that reads the account.

    Attributes:
        name: name of the contender in tables.
        module: module of `benchmarks.others`; a variant follows after a slash. `ours` is the command.
        is_slow: whether the contender takes minutes.
    """

    name: str
    module: str
    is_slow: bool = False


OURS = Contender("ours", "ours")
EMPTY = Contender("empty run", "empty_run")
FLOORS = tuple(
    Contender(f"floor, {name}", f"floors/{client}")
    for client, name in (("streams", "asyncio streams"), ("aiohttp", "aiohttp"), ("pycurl", "pycurl"))
)
PLAIN = Contender("plain loop", "plain_loop", is_slow=True)
DLT = Contender("dlt", "dlt_rest_api", is_slow=True)
CONTENDERS = (OURS, EMPTY, *FLOORS, PLAIN, DLT)

LATER, LARGE, MANY = "later", "large account", "many organizations"
UNCHANGED, CHANGED = "nothing changed", "one record changed"
HELP, STATUS = "--help", "status"
ONE, ALL = "one organization", "--all of them"

Found = dict[tuple[str, str], list[Measurement]]
"""Measurements by situation and name. A situation is a latency, LATER, LARGE or MANY."""


def run(options: argparse.Namespace, report: Report) -> None:
    """Measure on all servers and report."""
    others = [contender for contender in CONTENDERS if contender not in (OURS, EMPTY)]
    needs_others = any(_is_chosen(options, contender.module) for contender in others)
    if needs_others and not all(map(find_spec, ("dlt", "pycurl", "requests"))):
        raise BenchmarkError("it needs benchmarks/requirements.txt: run `make benchmark ARGS=syncs`")
    with ExitStack() as stack:
        courses = [
            _Course(name, stack.enter_context(running_server(programs)), options.rounds)
            for name, programs in _programs(options)
        ]
        for course in courses:
            course.server.execute("alter system set autovacuum = off", "select pg_reload_conf()")
        _measure(courses, options)
        packages = [name for name in ("dagster", "psycopg", "aiohttp", "pycurl", "dlt") if find_spec(name)]
        report.show_machine(", ".join(f"{course.server.version} ({course.name})" for course in courses), *packages)
    for course in courses:
        size = f"{options.patients:,} patients and {options.appointments:,} appointments"
        report.show(_table(course.found, f"{course.name} server, {size}"), _parts(course.found))
    report.show_verdicts(target for course in courses for target in _targets(course.name, course.found, options))


def _measure(courses: Sequence["_Course"], options: argparse.Namespace) -> None:
    """Measure the chosen situations. Only one simulated Cliniko runs at a time."""
    size = (options.patients, options.appointments)
    with sandbox_process(*size) as sandbox:
        answers = _Answers(options.appointments)
        contenders = [contender for contender in CONTENDERS if _is_chosen(options, contender.module)]
        for course in courses:
            for latency in options.latencies if contenders else ():
                course.measure_first(sandbox, answers, contenders, latency)
        sandbox.apply(partial(_set_latency, 0))
        for course in courses if _is_chosen(options, LATER) else ():
            course.measure_later(sandbox)
    if options.large and _is_chosen(options, LARGE):
        with sandbox_process(*(options.large * number for number in size)) as sandbox:
            for course in courses:
                course.measure_large(sandbox)
    if options.organizations and _is_chosen(options, MANY):
        with sandbox_process(*SMALL_ACCOUNT) as sandbox:
            for course in courses:
                course.measure_many(sandbox, options.organizations)


def _is_chosen(options: argparse.Namespace, name: str) -> bool:
    words = [word for given in options.only for word in given.split(",")]
    return not words or any(word in name for word in words)


def _programs(options: argparse.Namespace) -> list[tuple[str, Path | None]]:
    """Return the chosen servers by name, with the folder of their programs. None stands for the embedded server."""
    installed = {EMBEDDED: None} | ({DEBIAN: found} if (found := debian_programs()) else {})
    chosen = [(name, installed[name]) for name in options.servers if name in installed]
    if not chosen:
        raise BenchmarkError(f"--servers has none that is installed: {', '.join(installed)}")
    return chosen


# Measuring.


class _Answers:
    """The rows that all contenders must have for an account, as of the creation of this object."""

    def __init__(self, appointments: int) -> None:
        self.appointments = appointments
        self.as_of = datetime.now(UTC).replace(microsecond=0).isoformat()
        self._expected: dict[str, str] = {}

    def require_same(self, contender: Contender, database: Database) -> None:
        """Raise BenchmarkError if rows differ from those of previous contenders. Of dlt, only results are compared."""
        by_us = contender == OURS
        records, results = ("cliniko", "public") if by_us else (SCHEMA, SCHEMA)
        rows = {
            "patients": (f"{records}.patients", PATIENTS.written, "true"),
            "appointments": (f"{records}.appointments", APPOINTMENTS.written, "true"),
            "pairs": (f"{records}.contact_mapping", ("patient_id", "contact_id"), "contact_id is not null"),
            "active patients": (f"{results}.active_patients", ACTIVE_PATIENTS.written, "true"),
        }
        for name, (source, columns, condition) in rows.items():
            if contender == DLT and name in ("patients", "appointments"):
                continue
            row = f"({', '.join(columns)})::text"
            statement = f"select count(*) || ' ' || md5(string_agg({row}, '' order by {row})) from {source}"  # noqa: S608
            with database.operator() as connection:
                found = connection.execute(sa.text(f"{statement} where {condition}")).scalar_one()
            if found is None or found != self._expected.setdefault(name, found):
                raise BenchmarkError(f"{contender.name} has other {name} than the contenders before, or none")


@dataclass
class _Course:
    """The measurements on one server."""

    name: str
    server: Server
    rounds: int
    found: Found = field(default_factory=dict[tuple[str, str], list[Measurement]])

    def measure_first(
        self, sandbox: SandboxProcess, answers: _Answers, contenders: Sequence[Contender], latency: int
    ) -> None:
        """Measure first syncs by all contenders. Each round begins with another contender."""
        sandbox.apply(partial(_set_latency, latency))
        for number in range(self.rounds):
            first = number * len(contenders) // self.rounds
            for contender in [*contenders[first:], *contenders[:first]]:
                if latency and contender.is_slow and number:
                    continue
                has_dagster = contender in (OURS, EMPTY)
                with prepared_home(self.server, sandbox.account, has_dagster=has_dagster) as home:
                    contend = partial(_contend, contender, home, sandbox, answers)
                    self._note(_answered(latency), contender.name, contend)
                    if contender != EMPTY:
                        answers.require_same(contender, home.database)

    def measure_later(self, sandbox: SandboxProcess) -> None:
        """Measure syncs after the first sync, and commands that only show something."""
        with prepared_home(self.server, sandbox.account) as home:
            home.sync()
            for _ in range(self.rounds):
                self._note(LATER, EMPTY.name, lambda: _empty_run(home))
                self._note(LATER, UNCHANGED, lambda: home.sync(updated=0))
                sandbox.apply(_change_one)
                self._note(LATER, CHANGED, lambda: home.sync(updated=1))
                self._note(LATER, HELP, lambda: home.pipeline("--help"))
                self._note(LATER, STATUS, lambda: home.pipeline("status"))
                self._note(LATER, IMPORTS, lambda: Measurement(home.run(sys.executable, "-c", IMPORTS).taken))

    def measure_large(self, sandbox: SandboxProcess) -> None:
        """Measure first syncs of a large account."""
        for _ in range(self.rounds):
            with prepared_home(self.server, sandbox.account) as home:
                self._note(LARGE, OURS.name, home.sync)

    def measure_many(self, sandbox: SandboxProcess, number: int) -> None:
        """Measure first syncs of one small organization, and of many organizations by one command."""
        ids = [f"clinic-{index:02}" for index in range(number)]
        for _ in range(self.rounds):
            with prepared_home(self.server, sandbox.account) as home:
                self._note(MANY, ONE, home.sync)
            with prepared_home(self.server, sandbox.account, ids) as home:
                self._note(MANY, ALL, lambda: home.pipeline("sync", "--all"))

    def _note(self, situation: str, name: str, measure: Callable[[], Measurement]) -> None:
        measured = measure()
        noted(f"{self.name}, {situation}, {name}", measured.taken)
        self.found.setdefault((situation, name), []).append(measured)


def _contend(contender: Contender, home: Home, sandbox: SandboxProcess, answers: _Answers) -> Measurement:
    """Run the contender on the account and return its measurement."""
    if contender == OURS:
        return home.sync("--as-of", answers.as_of)
    if contender == EMPTY:
        return _empty_run(home)
    account = sandbox.account
    task = Task(
        account.api_url,
        account.api_key,
        account.host,
        libpq_url(home.database.url),
        str(home.folder),
        len(account.patient_ids),
        answers.appointments,
        answers.as_of,
    )
    # By default, dlt sends telemetry, keeps its state in the user's home, and warns of each column that has only nulls.
    environ = {"RUNTIME__DLTHUB_TELEMETRY": "false", "DLT_DATA_DIR": str(home.folder), "RUNTIME__LOG_LEVEL": "ERROR"}
    module, *variant = contender.module.split("/")
    before = server_cpu_seconds(home.server.home)
    taken: Taken = run_fresh(
        f"benchmarks.others.{module}:run", task, *variant, environ=environ, folder=home.folder, seconds=MAX_SECONDS
    )
    return Measurement(replace(taken, server_cpu=server_cpu_seconds(home.server.home) - before))


def _empty_run(home: Home) -> Measurement:
    return Measurement(home.run(sys.executable, "-m", f"benchmarks.others.{EMPTY.module}", ORGANIZATION).taken)


def _set_latency(latency: int, sandbox: Sandbox, _account: Account) -> None:
    sandbox.faults = Faults(latency_ms=latency)


def _change_one(_sandbox: Sandbox, account: Account) -> None:
    """Change one record, in which the patient of the first appointment did or did not arrive."""
    query = read_query(RESOURCES[LARGEST], {"page": "1", "per_page": "1"}.items())
    record = wire.parse(account.page(LARGEST, query).bodies[0])
    changes = {"did_not_arrive": not record["did_not_arrive"], "updated_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
    account.put(LARGEST, record | changes)


# Reporting.


def _targets(server: str, found: Found, options: argparse.Namespace) -> list[Target]:
    taken = {key: _median(measured) for key, measured in found.items()}
    targets: list[Target] = []

    def add(
        claim: str, above: Taken | None, below: Sequence[Taken | None], limit: float, *, least: bool = False
    ) -> None:
        present = [other.seconds for other in below if other is not None]
        if above is not None and len(present) == len(below):
            targets.append(Target(f"{server}: seconds of {claim}", above.seconds / sum(present), limit, at_least=least))

    for latency in options.latencies:
        answered = _answered(latency)
        ours, empty, *_, dlt = (taken.get((answered, contender.name)) for contender in CONTENDERS)
        names = [contender.name for contender in FLOORS if (answered, contender.name) in taken]
        floor = min((taken[answered, name] for name in names), key=lambda figures: figures.seconds, default=None)
        claim = f"a first sync / the fastest floor and an empty run, {answered}"
        add(claim, ours, [floor, empty], 1.25 if latency else 1.5)
        if not latency:
            add("dlt / ours", dlt, [ours], 6, least=True)
            large = taken.get((LARGE, OURS.name))
            add(f"{options.large} times the account / the account", large, [ours], 1.1 * options.large)
            if ours and floor:
                ratio = ours.server_cpu / floor.server_cpu
                targets.append(Target(f"{server}: PostgreSQL's CPU seconds of ours / the floor's", ratio, 1.8))
    empty, changed, *shown, imports = (
        taken.get((LATER, name)) for name in (EMPTY.name, CHANGED, HELP, STATUS, IMPORTS)
    )
    add(f"a sync with {CHANGED} / an empty run", changed, [empty], 1.3)
    add(f"{options.organizations} organizations / one", taken.get((MANY, ALL)), [taken.get((MANY, ONE))], 8)
    for name, command in zip((HELP, STATUS), shown, strict=True):
        add(f"{name} / its imports", command, [imports], 2)
    return targets


def _median(measured: Sequence[Measurement]) -> Taken:
    return median_of([measurement.taken for measurement in measured])


def _table(found: Found, title: str) -> Table:
    """Return a table of medians."""
    columns = [("", "{}"), ("", "{}"), ("rounds", "{}"), ("seconds", "{:.2f}"), ("from to", "{}")]
    columns += [("CPU seconds", "{:.2f}"), ("PostgreSQL's", "{:.2f}"), ("peak", "{:.0f} MB")]
    rows: list[tuple[object, ...]] = []
    for (situation, name), measured in found.items():
        taken, spread = _median(measured), seconds_range([measurement.taken for measurement in measured])
        figures = (taken.seconds, spread, taken.cpu, taken.server_cpu, taken.peak or None)
        rows.append((situation, name, len(measured), *figures))
    return table(columns, rows, title, left=2)


def _parts(found: Found) -> Table:
    """Return a table of the parts of the pipeline's syncs."""
    columns = [("", "{}"), ("", "{}"), *((part.removeprefix("cliniko__"), "{:.2f}") for part in PARTS)]
    rows = [
        (*key, *(median(measurement.parts[part] for measurement in measured) for part in PARTS))
        for key, measured in found.items()
        if measured[0].parts
    ]
    return table(columns, rows, "Seconds of our syncs from the command's start to its exit", left=2)


def _answered(latency: int) -> str:
    return f"answered after {latency} ms" if latency else "answered at once"
