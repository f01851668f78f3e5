"""The first sync of an account, ours beside others: dlt, a plain loop, and the floor that nothing can be faster than.

`make benchmark-syncs`, on Linux, takes twenty minutes, 2 GB of memory and 2 GB of disk under TMPDIR. It brings its own
database and a simulated Cliniko in a process of its own, which answers at once, and then after 100 ms. Whatever is
measured (see `others`) runs in a fresh process on a fresh database of the same server, in turn, in another order in
each round. `python -m benchmarks.syncs --patients 1000 --appointments 5000` is a quick try; `--docs` puts the table and
the charts into the documentation.

Wall and CPU seconds are those of the work, without the start of the process; a peak is the most resident memory that
the process ever had. 1 MB is 10^6 bytes. All have read and stored the same when they end, or there is no result.
"""

import argparse
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import psycopg
from rich.table import Table

from benchmarks.others.measuring import Taken, Task
from benchmarks.sync_charts import Bar, Chart, as_svg
from benchmarks.telling import CONSOLE, load, machine, say
from cliniko_pipeline.postgres import schema
from cliniko_pipeline.postgres.embedded import EmbeddedServer
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.tables import APPOINTMENTS, PATIENTS
from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline.sandbox.generated import generated_account
from cliniko_pipeline.sandbox.server import running_sandbox

PATIENTS_READ = 20_000
APPOINTMENTS_READ = 100_000
LATENCIES = (0, 100)
"""Milliseconds until the simulated Cliniko answers."""

ROUNDS = 3
ROUNDS_OF_SLOW = 1

LONGEST_SECONDS = 1800
END_SECONDS = 30

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "benchmarks.md"
PICTURES = ROOT / "docs" / "images"
BEGIN, END = "<!-- benchmark-syncs: begin -->\n", "<!-- benchmark-syncs: end -->\n"

_NOT_OURS = ("DATABASE_URL", "CREDENTIALS_ENCRYPTION_KEY", "DAGSTER_", "CLINIKO_", "PYTHONDONTWRITEBYTECODE", "DLT_")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Contender:
    """Something that is measured.

    Attributes:
        name: what the tables call it.
        module: what `python -m benchmarks.others` runs.
        patients, appointments: the tables it fills, if it does.
        as_ours: whether these have the columns of ours, which then must hold the same.
        is_slow: whether it takes minutes.
    """

    name: str
    module: str
    patients: str | None = None
    appointments: str | None = None
    as_ours: bool = True
    is_slow: bool = False


def _floor(name: str, client: str) -> tuple[Contender, Contender]:
    tables = ("written_by_hand.patients", "written_by_hand.appointments")
    return (
        Contender(f"COPY, {name}", f"floors/{client}-copy", *tables),
        Contender(f"download, {name}", f"floors/{client}-download"),
    )


OURS = Contender("ours", "ours", "cliniko.patients", "cliniko.appointments")
DLT = Contender("dlt", "dlt_rest_api", "by_dlt.patients", "by_dlt.individual_appointments", as_ours=False, is_slow=True)
PLAIN = Contender("plain loop", "plain_loop", "written_by_hand.patients", "written_by_hand.appointments", is_slow=True)
_FLOORS = (_floor("asyncio streams", "streams"), _floor("aiohttp", "aiohttp"), _floor("pycurl", "pycurl"))
COPYING = tuple(copying for copying, _ in _FLOORS)
DOWNLOADING = tuple(downloading for _, downloading in _FLOORS)
CONTENDERS = (OURS, *COPYING, *DOWNLOADING, PLAIN, DLT)


@dataclass(frozen=True)
class Measurement:
    """One first sync. `others` are the CPU seconds of the processes beside it, by whose they are."""

    contender: Contender
    latency: int
    taken: Taken
    others: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.taken.seconds:.2f} s, {self.taken.cpu:.2f} CPU s, peak {self.taken.peak:.0f} MB"


@dataclass(frozen=True)
class Medians:
    """Of all measurements of a contender at one latency."""

    contender: Contender
    rounds: int
    fastest: float
    slowest: float
    taken: Taken
    others: Mapping[str, float]


@dataclass(frozen=True)
class Served:
    """What the simulated Cliniko's process tells of itself, once it serves."""

    process: int
    host: str
    api_url: str
    api_key: str


@dataclass(frozen=True)
class Target:
    """What is promised: `figure` is at most, or at least, `limit`."""

    claim: str
    figure: float
    limit: float
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        """Whether it holds."""
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    def __str__(self) -> str:
        bound = "at least" if self.at_least else "at most"
        verdict = "met" if self.is_met else "NOT MET"
        return f"{self.claim}: {self.figure:.3g} ({bound} {self.limit:g}): {verdict}"


def main() -> int:
    """Measures and prints; the exit code is 1 where a target is not met."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was started, too
    options = _options()
    if not Path("/proc/self/status").exists():
        CONSOLE.print("CPU seconds and peaks are read from /proc, which this system does not have.")
        return 1
    load_first = load()
    contenders = [each for each in CONTENDERS if not options.only or any(word in each.module for word in options.only)]
    with tempfile.TemporaryDirectory(prefix="cliniko-syncs-") as folder:
        bench = Bench(Path(folder), options.patients, options.appointments)
        with bench.running():
            medians = {latency: measure(bench, contenders, latency, options) for latency in options.latencies}
            head = (
                f"{_versions(bench)}\nLoad of the machine (1, 5, 15 minutes): {load_first}; when it was over: {load()}"
            )
    targets = targets_of(medians)
    with CONSOLE.capture() as captured:
        CONSOLE.print(head, highlight=False)
        for latency, found in medians.items():
            CONSOLE.print(table_of(found, f"{_size(options)}, answered {_latency(latency)}"))
        for target in targets:
            CONSOLE.print(str(target), highlight=False)
    CONSOLE.print(captured.get(), end="", highlight=False)
    if options.docs:
        write_docs(captured.get(), medians, _size(options))
    return 0 if all(target.is_met for target in targets) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The first sync of an account, ours beside others.")
    parser.add_argument("--patients", type=int, default=PATIENTS_READ, help="default: %(default)s")
    parser.add_argument("--appointments", type=int, default=APPOINTMENTS_READ, help="default: %(default)s")
    parser.add_argument(
        "--latencies", type=int, nargs="+", default=LATENCIES, metavar="MS", help="default: %(default)s milliseconds"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    parser.add_argument(
        "--rounds-of-slow", type=int, default=ROUNDS_OF_SLOW, help="of dlt and the plain loop; default: %(default)s"
    )
    modules = ", ".join(each.module for each in CONTENDERS)
    parser.add_argument("--only", nargs="+", metavar="WORD", help=f"those whose name has one of these: {modules}")
    parser.add_argument("--docs", action="store_true", help="put the results into docs/, too")
    return parser.parse_args()


def measure(
    bench: "Bench", contenders: Sequence[Contender], latency: int, options: argparse.Namespace
) -> list[Medians]:
    """All of them, in turn: each round begins with another."""
    bench.answer_after(latency)
    found: dict[str, list[Measurement]] = {each.module: [] for each in contenders}
    for number in range(max(options.rounds, options.rounds_of_slow)):
        first = number * len(contenders) // max(1, options.rounds)
        for each in [*contenders[first:], *contenders[:first]]:
            if number < (options.rounds_of_slow if each.is_slow else options.rounds):
                say(f"Answered {_latency(latency)}, round {number + 1}: {each.name}")
                measurement = bench.measured(each, latency)
                found[each.module].append(measurement)
                CONSOLE.print(f"         {measurement}", style="dim", highlight=False)
    return [medians_of(measurements) for measurements in found.values() if measurements]


def medians_of(measurements: Sequence[Measurement]) -> Medians:
    """Each figure's own median."""

    def middle(figure: Callable[[Measurement], float]) -> float:
        return median(map(figure, measurements))

    seconds = [each.taken.seconds for each in measurements]
    return Medians(
        contender=measurements[0].contender,
        rounds=len(measurements),
        fastest=min(seconds),
        slowest=max(seconds),
        taken=Taken(median(seconds), middle(lambda one: one.taken.cpu), middle(lambda one: one.taken.peak)),
        others={whose: middle(lambda one, whose=whose: one.others[whose]) for whose in measurements[0].others},
    )


class Bench:
    """What everything is measured on: the simulated Cliniko, and a server with a database for each that is measured."""

    def __init__(self, folder: Path, patients: int, appointments: int) -> None:
        self._folder = folder
        self._patients = patients
        self._appointments = appointments
        self._measured = 0
        self._stored: list[str] = []
        self.server = EmbeddedServer(folder / "postgres")

    @contextmanager
    def running(self) -> Generator[None]:
        """Serves until the end of the block."""
        say(f"Making an account of {self._patients:,} patients and {self._appointments:,} appointments")
        with (
            self.server,
            simulated_cliniko(self._patients, self._appointments) as (self._served, self._set_latency),
        ):
            self.execute("create database migrated")
            database = Database(self.server.url.set(database="migrated"))
            schema.migrate(database, create_application_tables=True)
            database.close()
            yield

    def answer_after(self, latency: int) -> None:
        """From now on."""
        self._set_latency(latency)

    def measured(self, contender: Contender, latency: int) -> Measurement:
        """One first sync, in a fresh process on a fresh database."""
        self._measured += 1
        name = f"measured_{self._measured}"
        # The checkpoint writes what was left unwritten by the one before.
        self.execute(f"create database {name} template migrated", "checkpoint")
        folder = self._folder / name
        folder.mkdir()
        before = self._spent()
        taken = self._run(contender, folder, self._url(name))
        # A process of the server that ends between two looks is seen in neither.
        spent = {whose: max(0.0, seconds - before[whose]) for whose, seconds in self._spent().items()}
        self._require_stored(contender, name)
        self.execute(f"drop database {name} with (force)")
        everything = spent.pop("everything")
        ended = spent.pop("measured processes")
        return Measurement(
            contender, latency, taken, spent | {"all else": max(0.0, everything - ended - sum(spent.values()))}
        )

    def execute(self, *statements: str) -> None:
        """On the server, in no transaction."""
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            for each in statements:
                connection.execute(each.encode())

    def scalar(self, database: str, statement: str) -> Any:
        """The first value of the first row."""
        with psycopg.connect(self._url(database)) as connection:
            return (connection.execute(statement.encode()).fetchone() or [None])[0]

    def _run(self, contender: Contender, folder: Path, database_url: str) -> Taken:
        task = Task(
            api_url=self._served.api_url,
            api_key=self._served.api_key,
            host=self._served.host,
            database_url=database_url,
            folder=str(folder),
            patients=self._patients,
            appointments=self._appointments,
        )
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_NOT_OURS) and name.lower() not in _PROXIES
        }
        # dlt would tell its makers, and keep its state in the home of whoever runs this.
        environ |= {"PYTHONPATH": str(ROOT), "RUNTIME__DLTHUB_TELEMETRY": "false", "DLT_DATA_DIR": str(folder)}
        process = subprocess.Popen(  # noqa: S603 (ours, no shell)
            [sys.executable, "-m", "benchmarks.others", contender.module],
            env=environ,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            output, _ = process.communicate(msgspec.json.encode(task), timeout=LONGEST_SECONDS)
        finally:
            if process.returncode is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(END_SECONDS)
                process.kill()
                process.wait()
        if process.returncode:
            raise SystemExit(f"{contender.name} failed:\n{output.decode(errors='replace')[-4000:]}")
        return msgspec.json.decode((folder / "answer").read_bytes(), type=Taken)

    def _require_stored(self, contender: Contender, database: str) -> None:
        """Ends the benchmark where not all is stored, or not the same as the others have."""
        if contender.patients is None or contender.appointments is None:
            return
        counts = [
            self.scalar(database, f"select count(distinct id) from {table}")  # noqa: S608 (named above)
            for table in (contender.patients, contender.appointments)
        ]
        if counts != [self._patients, self._appointments]:
            raise SystemExit(f"{contender.name} stored {counts[0]} patients and {counts[1]} appointments.")
        cancelled = f"select count(cancelled_at) from {contender.appointments}"  # noqa: S608
        found = [str(self.scalar(database, cancelled))]
        if contender.as_ours:
            for table, columns in ((contender.patients, PATIENTS), (contender.appointments, APPOINTMENTS)):
                row = f"({', '.join(columns.written)})::text"
                whole = f"select md5(string_agg(md5({row}), '' order by id)) from {table}"  # noqa: S608
                found.append(self.scalar(database, whole))
        if found != (self._stored or found)[: len(found)]:
            raise SystemExit(f"{contender.name} stored something else than those before it.")
        self._stored = max(self._stored, found, key=len)

    def _url(self, database: str) -> str:
        url = self.server.url.set(drivername="postgresql", database=database)
        return url.render_as_string(hide_password=False)

    def _spent(self) -> dict[str, float]:
        """CPU seconds so far, by whose they are; `everything` are those of the whole machine."""
        server = int((self._folder / "postgres" / "data" / "postmaster.pid").read_text("utf-8").split("\n", 1)[0])
        user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text("ascii").split()[1:8])
        ended = os.times()
        return {
            "PostgreSQL": _cpu_of(server) + sum(map(_cpu_of, _children(server))),
            "Cliniko": _cpu_of(self._served.process),
            "measured processes": ended.children_user + ended.children_system,
            "everything": sum((user, nice, system, *interrupts)) / _TICKS_A_SECOND,
        }


def _cpu_of(process: int) -> float:
    """CPU seconds of a process and of those of its children that have ended; 0 where it has ended itself."""
    with suppress(OSError):
        _, _, fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")
        return sum(map(int, fields.split()[11:15])) / _TICKS_A_SECOND
    return 0.0


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text("ascii").split()]


@contextmanager
def simulated_cliniko(patients: int, appointments: int) -> Generator[tuple[Served, Callable[[int], None]]]:
    """An account of that size, served by a process of its own, and what sets how long each answer takes."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(theirs, patients, appointments), name="simulated Cliniko", daemon=True
    )
    process.start()
    theirs.close()
    try:
        served: Served = ours.recv()

        def set_latency(milliseconds: int) -> None:
            ours.send(milliseconds)
            ours.recv()

        yield served, set_latency
    finally:
        process.kill()  # it has nothing to put in order
        process.join()
        ours.close()


def _serve(connection: Connection, patients: int, appointments: int) -> None:
    """The simulated Cliniko's process; ends when nobody is there to tell it what to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the benchmark, which ends it
    account = generated_account(patients, appointments, 1, datetime.now(UTC))
    # Records that stay: looking through them again and again would only slow the answers down.
    gc.collect()
    gc.freeze()
    with running_sandbox([account]) as sandbox, suppress(EOFError, BrokenPipeError):
        connection.send(Served(os.getpid(), sandbox.host, sandbox.base_url(account), account.api_key))
        while True:
            sandbox.faults = Faults(latency_ms=connection.recv())
            connection.send("set")


# What is told.


def targets_of(medians: Mapping[int, Sequence[Medians]]) -> list[Target]:
    """What is promised, of what was measured."""
    targets: list[Target] = []
    for latency, found in medians.items():
        by_module = {each.contender.module: each.taken for each in found}
        ours = by_module.get(OURS.module)
        if ours is None:
            continue
        when = f"Answered {_latency(latency)}"
        floors = [by_module[each.module].seconds for each in COPYING if each.module in by_module]
        dlt, plain = by_module.get(DLT.module), by_module.get(PLAIN.module)
        if floors:
            claim = f"{when}: seconds of ours / of the fastest COPY"
            targets.append(Target(claim, ours.seconds / min(floors), 1.3 if latency else 1.5))
        if dlt:
            claim = f"{when}: seconds of dlt / of ours"
            targets.append(Target(claim, dlt.seconds / ours.seconds, 8 if latency else 15, at_least=True))
        if dlt and not latency:
            claim = f"{when}: CPU seconds of dlt / of ours"
            targets.append(Target(claim, dlt.cpu / ours.cpu, 10, at_least=True))
        if plain and not latency:
            claim = f"{when}: seconds of the plain loop / of ours"
            targets.append(Target(claim, plain.seconds / ours.seconds, 10, at_least=True))
        targets.append(Target(f"{when}: peak of ours, MB", ours.peak, 250))
    return targets


def table_of(found: Sequence[Medians], title: str) -> Table:
    """Medians, and what they are to ours."""
    ours = next((each.taken for each in found if each.contender == OURS), None)
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    headings = ("rounds", "seconds", "from to", "of ours", "CPU seconds", "of ours", "peak")
    for heading in (*headings, *(f"CPU of {whose}" for whose in found[0].others)):
        table.add_column(heading, justify="right")
    for each in found:
        taken = each.taken
        table.add_row(
            each.contender.name,
            str(each.rounds),
            f"{taken.seconds:.2f}",
            f"{each.fastest:.2f} {each.slowest:.2f}" if each.rounds > 1 else "",
            f"{taken.seconds / ours.seconds:.2f}" if ours else "",
            f"{taken.cpu:.2f}",
            f"{taken.cpu / ours.cpu:.2f}" if ours else "",
            f"{taken.peak:.0f} MB",
            *(f"{seconds:.1f}" for seconds in each.others.values()),
        )
    return table


def write_docs(output: str, medians: Mapping[int, Sequence[Medians]], size: str) -> None:
    """Renews what the document shows between its marks, and the charts."""
    printed = "\n".join(line.rstrip() for line in output.splitlines())
    parts = ["```", printed, "```", ""]
    for latency, found in medians.items():
        picture = f"benchmark-syncs-{latency}ms.svg"
        title = f"First sync of {size}, answered {_latency(latency)}"
        (PICTURES / picture).write_text(as_svg(title, charts_of(found)), encoding="utf-8")
        parts += [f"![{title}: seconds, CPU seconds and peak memory](images/{picture})", ""]
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    shown = "\n".join(["", *parts, ""])
    DOCUMENT.write_text(f"{before}{BEGIN}{shown}{END}{after}", encoding="utf-8")


def charts_of(found: Sequence[Medians]) -> list[Chart]:
    """Ours, the fastest of each floor, the plain loop and dlt."""
    fastest = [
        min((each for each in found if each.contender in floor), key=lambda each: each.taken.seconds, default=None)
        for floor in (DOWNLOADING, COPYING)
    ]
    rest = [next((each for each in found if each.contender == one), None) for one in (OURS, PLAIN, DLT)]
    shown = [each for each in (*fastest, *rest) if each is not None]

    def chart(title: str, pattern: str, figure: Callable[[Taken], float]) -> Chart:
        bars = [
            Bar(
                each.contender.name.partition(",")[0],
                figure(each.taken),
                pattern.format(figure(each.taken)),
                stands_out=each.contender == OURS,
            )
            for each in shown
        ]
        return Chart(title, bars)

    return [
        chart("Seconds", "{:.1f}", lambda taken: taken.seconds),
        chart("CPU seconds of the process", "{:.1f}", lambda taken: taken.cpu),
        chart("Peak memory of the process", "{:.0f} MB", lambda taken: taken.peak),
    ]


def _size(options: argparse.Namespace) -> str:
    return f"{options.patients:,} patients and {options.appointments:,} appointments"


def _latency(milliseconds: int) -> str:
    return f"after {milliseconds} ms" if milliseconds else "at once"


def _versions(bench: Bench) -> str:
    packages = ("dagster", "httpx", "msgspec", "psycopg", "aiohttp", "pycurl", "requests", "dlt")
    return machine(bench.scalar("postgres", "show server_version"), *packages)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
