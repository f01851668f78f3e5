"""The two transformations at size: `active_patients` beside one hand-written statement that computes the same rows, and
`contact_mapping` for clienteles of growing size, ordinary and hostile ones.

`make benchmark-transforms`, on Linux, takes five to ten minutes, 1 GB of memory and 2 GB of disk under TMPDIR. It
brings its own database, with the server's default settings. `python -m benchmarks.transforms --appointments 20000
--patients 2000 --sizes 500 1000` is a quick try.

What is measured of ours is everything that the IO manager does for the table, in the organization's context: the lock,
the query, the staging table, the comparison with what is stored, and what is noted of it for the next sync, the commit;
one appointment has changed before. What the next syncs take if nothing has is told beside it. The hand-written
statement runs as a superuser, without row-level security, into an empty table with the same columns and indexes; twice,
with the server's settings and with those that ours plans with, and the faster one counts. They take turns, the rows of
both are compared, and medians are told. Seconds are those of the clock, CPU seconds those of the server's process that
does the work (the kernel's).
"""

import argparse
import math
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median

import psycopg
import sqlalchemy as sa
from rich.table import Table as Shown
from sqlalchemy.engine import Connection

from benchmarks.telling import CONSOLE, load, machine, say
from benchmarks.transform_data import (
    ACTIVITY_WINDOW,
    AS_OF,
    BY_HAND_TABLE,
    HOSTILE,
    MIXED,
    ORGANIZATION,
    Clientele,
    by_hand,
    clinic,
)
from cliniko_pipeline.postgres import derivations, schema, tables
from cliniko_pipeline.postgres.derivations import Derivation
from cliniko_pipeline.postgres.embedded import EmbeddedServer
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS, CONTACT_MAPPING, Table

PATIENTS = 100_000
APPOINTMENTS = 1_000_000
CLASS_SHARE = 0.1
SIZES = (12_500, 25_000, 50_000, 100_000)
"""Of as many patients as contacts."""

ROUNDS = 5
ROUNDS_OF_MAPPINGS = 3

MOST_OF_BY_HAND = 1.3
MOST_SECONDS_OF_MAPPING = 5

OURS, BY_HAND = "ours", "by hand"
_COLUMNS = ", ".join(ACTIVE_PATIENTS.written)


@dataclass(frozen=True)
class Taken:
    """What something took."""

    seconds: float
    cpu: float


@dataclass(frozen=True)
class Row:
    """A line of the first table: the medians of what was measured in turn."""

    name: str
    all_taken: Sequence[Taken]
    rows: int

    @property
    def taken(self) -> Taken:
        """Each figure's own median."""
        return median_of(self.all_taken)


@dataclass(frozen=True)
class MappingFound:
    """The mapping of a clientele at one size."""

    clientele: Clientele
    size: int
    taken: Taken
    matched: int
    ambiguous: int
    unmatched: int


@dataclass(frozen=True)
class Target:
    """What is promised: `figure` is at most `limit`."""

    claim: str
    figure: float
    limit: float

    @property
    def is_met(self) -> bool:
        """Whether it holds."""
        return self.figure <= self.limit

    def __str__(self) -> str:
        return f"{self.claim}: {self.figure:.3g} (at most {self.limit:.3g}): {'met' if self.is_met else 'NOT MET'}"


def main() -> int:
    """Measures and prints; the exit code is 1 where a target is not met."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was started, too
    options = _options()
    if not Path("/proc/self/schedstat").exists():
        CONSOLE.print("CPU seconds are read from /proc, which this system does not have.")
        return 1
    load_first = load()
    with tempfile.TemporaryDirectory(prefix="cliniko-transforms-") as folder, Bench(Path(folder)).running() as bench:
        rows = [*measure_active_patients(bench, options)] if "active_patients" in options.only else []
        mappings = [*measure_mappings(bench, options)] if "contact_mapping" in options.only else []
        versions = _versions(bench)
    CONSOLE.print(versions, highlight=False)
    CONSOLE.print(f"Load of the machine (1, 5, 15 minutes): {load_first}; when it was over: {load()}", highlight=False)
    targets = report(rows, mappings, options)
    for target in targets:
        CONSOLE.print(str(target), highlight=False)
    return 0 if all(target.is_met for target in targets) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The two transformations at size.")
    parser.add_argument("--patients", type=int, default=PATIENTS, help="default: %(default)s")
    parser.add_argument("--appointments", type=int, default=APPOINTMENTS, help="default: %(default)s")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, metavar="N", help="of mappings; default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of active_patients; default: %(default)s")
    parser.add_argument(
        "--rounds-of-mappings", type=int, default=ROUNDS_OF_MAPPINGS, help="of contact_mapping; default: %(default)s"
    )
    tables = ("active_patients", "contact_mapping")
    parser.add_argument("--only", nargs="+", choices=tables, default=tables)
    return parser.parse_args()


def measure_active_patients(bench: "Bench", options: argparse.Namespace) -> Generator[Row]:
    """Ours and the hand-written statement, then what is told beside them."""
    say(f"Making a clinic of {options.patients:,} patients and {options.appointments:,} appointments")
    with bench.database(clinic(options.patients, options.appointments)) as database:
        _run(database, BY_HAND_TABLE)
        _replace(database, CONTACT_MAPPING)
        _run(database, "analyze")
        contenders: dict[str, Callable[[], object]] = {
            OURS: lambda: _replace(database, ACTIVE_PATIENTS),
            BY_HAND: lambda: _run(database, by_hand()),
            f"{BY_HAND}, settings of ours": lambda: _run(database, sql("plan_for_whole_tables"), by_hand()),
        }
        found: dict[str, list[Taken]] = {name: [] for name in contenders}
        for number in range(options.rounds):
            order = [*contenders]
            for name in order[number % len(order) :] + order[: number % len(order)]:
                _empty(database, "public.active_patients" if name == OURS else "by_hand.active_patients")
                _change(database)
                found[name].append(_timed(bench, database, f"{name}, round {number + 1}", contenders[name]))
            _require_same(database)
        for name, taken in found.items():
            yield Row(name, taken, _count(database, "by_hand.active_patients"))
        yield _again(bench, database, options.rounds, "ours again, one appointment changed", timedelta())
        yield _again(bench, database, options.rounds, "ours again, a minute later", timedelta(minutes=1))
        yield _again(bench, database, options.rounds, "nothing changed, the first time", timedelta(), syncs_since=1)
        yield _again(bench, database, options.rounds, "nothing changed, the second time", timedelta(), syncs_since=2)
    classes = round(options.appointments * CLASS_SHARE)
    say(f"Making a clinic with {classes:,} classes")
    with bench.database(clinic(options.patients, options.appointments, classes)) as database:
        _replace(database, CONTACT_MAPPING)
        _run(database, "analyze")
        taken: list[Taken] = []
        for number in range(options.rounds):
            _empty(database, "public.active_patients")
            _change(database)
            name = f"ours, a tenth of them classes, round {number + 1}"
            taken.append(_timed(bench, database, name, lambda: _replace(database, ACTIVE_PATIENTS)))
        yield Row("ours, a tenth of them classes of six", taken, _count(database, "public.active_patients"))


def _again(
    bench: "Bench", database: Database, rounds: int, name: str, later: timedelta, *, syncs_since: int = 0
) -> Row:
    """Computes the same once more, judging by an instant that is as much later each time, and so many syncs after
    something has changed.
    """
    taken: list[Taken] = []
    for number in range(rounds):
        as_of = AS_OF + later * (number + 1)
        _change(database)
        for _ in range(syncs_since):
            _replace(database, ACTIVE_PATIENTS, as_of)
        for table in ("public.active_patients", "cliniko.current_attendances"):
            _run(database, f"vacuum {table}", outside=True)
        taken.append(
            _timed(
                bench, database, f"{name}, round {number + 1}", lambda at=as_of: _replace(database, ACTIVE_PATIENTS, at)
            )
        )
    return Row(name, taken, _count(database, "public.active_patients"))


def measure_mappings(bench: "Bench", options: argparse.Namespace) -> Generator[MappingFound]:
    """Every clientele at every size."""
    for clientele in (MIXED, *HOSTILE):
        for size in sorted(options.sizes):
            with bench.database(clientele.statements(size)) as database:
                taken: list[Taken] = []
                for number in range(options.rounds_of_mappings):
                    _empty(database, "cliniko.contact_mapping")
                    name = f"{clientele.name}, {size:,}, round {number + 1}"
                    taken.append(_timed(bench, database, name, lambda: _replace(database, CONTACT_MAPPING)))
                yield _mapping(database, clientele, size, median_of(taken))


def _mapping(database: Database, clientele: Clientele, size: int, taken: Taken) -> MappingFound:
    with database.organization(ORGANIZATION) as connection:
        statuses = connection.execute(
            sa.text("select status, count(*) as persons from cliniko.contact_mapping group by status")
        )
        found = {row.status: row.persons for row in statuses}
    matched = found.get("matched", 0)
    if clientele.matched is not None and matched != size * clientele.matched:
        raise SystemExit(f"Of {clientele.name} {matched} are matched, not {size * clientele.matched:.0f}.")
    return MappingFound(clientele, size, taken, matched, found.get("ambiguous", 0), found.get("unmatched", 0))


def report(rows: Sequence[Row], mappings: Sequence[MappingFound], options: argparse.Namespace) -> list[Target]:
    """Prints the tables; the targets."""
    targets: list[Target] = []
    if rows:
        title = f"active_patients, {options.appointments:,} appointments and {options.patients:,} patients"
        floors = [row.taken for row in rows if row.name.startswith(BY_HAND)]
        floor = Taken(min(one.seconds for one in floors), min(one.cpu for one in floors))
        CONSOLE.print(table_of(rows, floor, title))
        ours = next(row.taken for row in rows if row.name == OURS)
        targets += [
            Target("active_patients: seconds of ours / by hand", ours.seconds / floor.seconds, MOST_OF_BY_HAND),
            Target("active_patients: CPU seconds of ours / by hand", ours.cpu / floor.cpu, MOST_OF_BY_HAND),
        ]
    if mappings:
        CONSOLE.print(table_of_mappings(mappings))
        for clientele in dict.fromkeys(each.clientele for each in mappings):
            mine = [each for each in mappings if each.clientele == clientele]
            smallest, largest = mine[0], mine[-1]
            claim = f"contact_mapping of {clientele.name}"
            targets.append(
                Target(f"{claim}: seconds for {largest.size:,}", largest.taken.seconds, MOST_SECONDS_OF_MAPPING)
            )
            if largest.size > smallest.size:
                growth = largest.taken.cpu / smallest.taken.cpu
                most = n_log_n(largest.size) / n_log_n(smallest.size)
                targets.append(Target(f"{claim}: CPU of {largest.size:,} / of {smallest.size:,}", growth, most))
    return targets


def n_log_n(size: int) -> float:
    """What nothing may grow faster than."""
    return size * math.log(size)


def table_of(rows: Sequence[Row], floor: Taken, title: str) -> Shown:
    """Medians, and what they are to the hand-written statement's."""
    table = Shown(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("rounds", "rows", "seconds", "from to", "by hand = 1", "CPU seconds", "by hand = 1"):
        table.add_column(heading, justify="right")
    for row in rows:
        seconds = [each.seconds for each in row.all_taken]
        table.add_row(
            row.name,
            str(len(seconds)),
            f"{row.rows:,}",
            f"{row.taken.seconds:.2f}",
            f"{min(seconds):.2f} {max(seconds):.2f}",
            f"{row.taken.seconds / floor.seconds:.2f}",
            f"{row.taken.cpu:.2f}",
            f"{row.taken.cpu / floor.cpu:.2f}",
        )
    return table


def table_of_mappings(mappings: Sequence[MappingFound]) -> Shown:
    """A line for each clientele and size; growth is that of CPU seconds since the size before."""
    table = Shown(title="contact_mapping, as many patients as contacts", title_justify="left")
    table.add_column("")
    for heading in ("patients", "matched", "ambiguous", "unmatched", "seconds", "CPU seconds", "growth", "n log n"):
        table.add_column(heading, justify="right")
    before: MappingFound | None = None
    for each in mappings:
        last = before if before and before.clientele == each.clientele else None
        table.add_row(
            "" if last else each.clientele.name,
            f"{each.size:,}",
            f"{each.matched:,}",
            f"{each.ambiguous:,}",
            f"{each.unmatched:,}",
            f"{each.taken.seconds:.2f}",
            f"{each.taken.cpu:.2f}",
            f"{each.taken.cpu / last.taken.cpu:.2f}" if last else "",
            f"{n_log_n(each.size) / n_log_n(last.size):.2f}" if last else "",
        )
        before = each
    return table


def median_of(taken: Sequence[Taken]) -> Taken:
    """Each figure's own median."""
    return Taken(median(each.seconds for each in taken), median(each.cpu for each in taken))


class Bench:
    """A server of its own, and a database for each clinic."""

    def __init__(self, folder: Path) -> None:
        self._server = EmbeddedServer(folder / "postgres")
        self._made = 0

    @contextmanager
    def running(self) -> Generator["Bench"]:
        """Until the end of the block."""
        with self._server:
            # Nothing else is to be at work: what vacuum and analyze have to do is done before it is measured.
            self.execute("alter system set autovacuum = off", "select pg_reload_conf()", "create database migrated")
            migrated = Database(self._server.url.set(database="migrated"))
            schema.migrate(migrated, create_application_tables=True)
            migrated.close()
            yield self

    @contextmanager
    def database(self, statements: Sequence[str]) -> Generator[Database]:
        """A database with what the statements make, analyzed."""
        self._made += 1
        name = f"clinic_{self._made}"
        self.execute(f"create database {name} template migrated")
        database = Database(self._server.url.set(database=name))
        try:
            _run(database, *statements)
            _run(database, "vacuum analyze", outside=True)
            yield database
        finally:
            database.close()
            self.execute(f"drop database {name} with (force)")

    def execute(self, *statements: str) -> None:
        """On the server, in no transaction."""
        url = self._server.url.set(drivername="postgresql", database="postgres")
        with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
            for each in statements:
                connection.execute(each.encode())

    def version(self) -> str:
        """The server's."""
        url = self._server.url.set(drivername="postgresql", database="postgres")
        with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
            return connection.info.parameter_status("server_version") or ""


def _timed(bench: Bench, database: Database, name: str, work: Callable[[], object]) -> Taken:
    bench.execute("checkpoint")  # what was left unwritten by the one before
    with database.operator() as connection:
        backend = _backend(connection)
    cpu_before, started = _cpu_of(backend), time.perf_counter()
    work()
    taken = Taken(time.perf_counter() - started, _cpu_of(backend) - cpu_before)
    with database.operator() as connection:
        if _backend(connection) != backend:  # the pool has one connection, which all take turns with
            raise SystemExit("The work was done by another process than the one that was looked at.")
    CONSOLE.print(f"         {name}: {taken.seconds:.2f} s, {taken.cpu:.2f} CPU s", style="dim", highlight=False)
    return taken


def _backend(connection: Connection) -> int:
    return connection.execute(sa.text("select pg_backend_pid()")).scalar_one()


def _cpu_of(process: int) -> float:
    """CPU seconds of a process so far."""
    return int(Path(f"/proc/{process}/schedstat").read_text("ascii").split()[0]) / 1e9


def _replace(database: Database, table: Table, as_of: datetime = AS_OF) -> None:
    """What the IO manager does with what the asset returns."""
    if table == ACTIVE_PATIENTS:
        parameters: Mapping[str, object] = {
            "as_of": as_of,
            "activity_window": ACTIVITY_WINDOW,
            "count_no_shows": True,
        }
        inputs = (tables.PATIENTS, tables.APPOINTMENTS, tables.ATTENDEES, CONTACT_MAPPING)
        derivation = Derivation(table, sql(table.name), inputs, parameters, tables.CURRENT_ATTENDANCES)
        anew = False
    else:
        derivation, anew = Derivation(table, sql(table.name), (tables.PATIENTS,), {}), True
    with database.organization(ORGANIZATION) as connection:
        derivations.write(connection, derivation, anew=anew)


def _change(database: Database) -> None:
    """An appointment, in nothing that is told of it."""
    first = "select id from cliniko.appointments order by id limit 1"
    _run(database, f"update cliniko.appointments set updated_at = clock_timestamp() where id = ({first})")  # noqa: S608


def _run(database: Database, *statements: str, outside: bool = False) -> None:
    """As a superuser, for whom there is no row-level security; in a transaction, or outside of one."""
    with database.operator_statement() if outside else database.operator() as connection:
        for each in statements:
            # Not as a template: a percent sign is one.
            connection.execution_options(no_parameters=True).exec_driver_sql(each)


def _empty(database: Database, table: str) -> None:
    _run(database, f"truncate {table}")
    _run(database, f"vacuum analyze {table}", outside=True)


def _count(database: Database, table: str) -> int:
    with database.operator() as connection:
        return connection.execute(sa.text(f"select count(*) from {table}")).scalar_one()  # noqa: S608 (named above)


def _require_same(database: Database) -> None:
    """Ends the benchmark where the rows are not the same, or there are none."""
    ours, others = (f"select organization_id, {_COLUMNS} from {each}.active_patients" for each in ("public", "by_hand"))  # noqa: S608
    difference = f"select count(*) from (({ours} except all {others}) union all ({others} except all {ours})) as either"  # noqa: S608
    with database.operator() as connection:
        different = connection.execute(sa.text(difference)).scalar_one()
    if different or not _count(database, "public.active_patients"):
        raise SystemExit(f"{different} rows are not the same as the hand-written statement's.")


def _versions(bench: Bench) -> str:
    return machine(bench.version(), "psycopg")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
