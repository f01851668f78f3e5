"""Benchmark of the transformations `active_patients` and `contact_mapping` with many rows.

It needs 1 GB of memory and 2 GB of disk under TMPDIR. The database has the server's default settings. `transforms
--appointments 20000 --patients 2000 --sizes 500 1000` is a quick try.

Everything that the IO manager does for a table is measured: the lock, the query, the comparison with the stored rows,
and the commit. One appointment changes before each measurement. `active_patients` is compared with a hand-written
statement, which fills an empty table with the same columns and indexes, as a superuser without row-level security. The
statement runs with the server's settings and with the pipeline's settings, and the faster time is used. Both must give
the same rows. The order changes with each round, and medians are shown. CPU seconds are those of the server's process
that does the work.
"""

import argparse
import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import sqlalchemy as sa
from rich.table import Table
from sqlalchemy.engine import Connection

from benchmarks.fixtures.by_hand import AS_OF, BY_HAND_TABLE, SETTINGS_OF_OURS, by_hand
from benchmarks.fixtures.clinic_data import (
    HOSTILE,
    MIXED,
    Clientele,
    Clinic,
    replace_active_patients,
    replace_mapping,
)
from benchmarks.fixtures.databases import Server, execute, running_server, vacuum
from benchmarks.measuring import Taken, median_of, noted, seconds_range
from benchmarks.reporting import Benchmark, BenchmarkError, Report, Target, progress, table
from cliniko_pipeline.postgres import tables
from cliniko_pipeline.postgres.engine import Database

CLASS_SHARE = 0.1
MAX_RATIO = 1.3
MAX_MAPPING_SECONDS = 5

OURS, BY_HAND = "ours", "by hand"
OURS_TABLE, BY_HAND_ROWS = "public.active_patients", "by_hand.active_patients"

BENCHMARK = Benchmark(
    measures="active_patients of 1,000,000 appointments; contact_mapping of 100,000 patients, ordinary and hostile",
    duration="ten minutes",
    targets=(
        f"active_patients: at most {MAX_RATIO} times the (CPU) seconds of a statement written by hand",
        f"contact_mapping: at most {MAX_MAPPING_SECONDS} s, growth of CPU seconds at most n log n",
    ),
    options={
        "--patients": (100_000, "patients for active_patients"),
        "--appointments": (1_000_000, "appointments for active_patients"),
        "--sizes": ((12_500, 25_000, 50_000, 100_000), "numbers of patients and of contacts for contact_mapping"),
        "--rounds": (5, "rounds of active_patients"),
        "--mapping-rounds": (3, "rounds of contact_mapping"),
        "--only": (("active_patients", "contact_mapping"), "the tables to measure"),
    },
)


@dataclass(frozen=True)
class Row:
    """A line of the table of `active_patients`."""

    name: str
    all_taken: Sequence[Taken]
    rows: int

    @property
    def taken(self) -> Taken:
        """The median of each figure."""
        return median_of(self.all_taken)


@dataclass(frozen=True)
class Mapping:
    """The mapping of a clientele of `size` patients. `statuses` has the number of patients by status."""

    clientele: Clientele
    size: int
    taken: Taken
    statuses: dict[str, int]


def run(options: argparse.Namespace, report: Report) -> None:
    """Measure both tables and report."""
    with running_server() as server:
        # Autovacuum is off, because tables are vacuumed and analyzed explicitly before each measurement.
        server.execute("alter system set autovacuum = off", "select pg_reload_conf()")
        rows = [*_measure_active_patients(server, options)] if "active_patients" in options.only else []
        mappings = [*_measure_mappings(server, options)] if "contact_mapping" in options.only else []
        report.show_machine(server.version, "psycopg")
    targets: list[Target] = []
    if rows:
        title = f"active_patients, {options.appointments:,} appointments and {options.patients:,} patients"
        by_hand_rows = [row.taken for row in rows if row.name.startswith(BY_HAND)]
        floor = Taken(min(taken.seconds for taken in by_hand_rows), min(taken.cpu for taken in by_hand_rows))
        report.show(_table_of_rows(rows, floor, title))
        ours = next(row.taken for row in rows if row.name == OURS)
        targets += [
            Target("active_patients: seconds of ours / by hand", ours.seconds / floor.seconds, MAX_RATIO),
            Target("active_patients: CPU seconds of ours / by hand", ours.cpu / floor.cpu, MAX_RATIO),
        ]
    if mappings:
        report.show(_table_of_mappings(mappings))
        for clientele in dict.fromkeys(mapping.clientele for mapping in mappings):
            smallest, *_, largest = [mapping for mapping in mappings if mapping.clientele == clientele] * 2
            claim = f"contact_mapping of {clientele.name}"
            targets.append(Target(f"{claim}: seconds of {largest.size:,}", largest.taken.seconds, MAX_MAPPING_SECONDS))
            if largest.size > smallest.size:
                growth = largest.taken.cpu / smallest.taken.cpu
                most = _n_log_n(largest.size) / _n_log_n(smallest.size)
                targets.append(Target(f"{claim}: CPU of {largest.size:,} / {smallest.size:,}", growth, most))
    if not targets:
        raise BenchmarkError(f"--only has no table's name: {options.only}")
    report.show_verdicts(targets)


# active_patients.


def _measure_active_patients(server: Server, options: argparse.Namespace) -> Generator[Row]:
    """Measure the pipeline and the hand-written statement, then later syncs and a clinic with classes."""
    progress(f"Making a clinic of {options.patients:,} patients and {options.appointments:,} appointments")
    with _clinic(server, Clinic(options.patients, options.appointments).statements()) as database:
        execute(database, BY_HAND_TABLE)
        replace_mapping(database)
        execute(database, "analyze")
        contenders: dict[str, Callable[[], None]] = {
            OURS: lambda: replace_active_patients(database),
            BY_HAND: lambda: execute(database, by_hand()),
            f"{BY_HAND}, settings of ours": lambda: execute(database, *SETTINGS_OF_OURS, by_hand()),
        }
        found: dict[str, list[Taken]] = {name: [] for name in contenders}
        for number in range(options.rounds):
            order = [*contenders]
            for name in order[number % len(order) :] + order[: number % len(order)]:
                _truncate(database, OURS_TABLE if name == OURS else BY_HAND_ROWS)
                _change(database)
                found[name].append(_timed(server, database, f"{name}, round {number + 1}", contenders[name]))
            _require_same(database)
        for name, taken in found.items():
            yield Row(name, taken, _count(database, BY_HAND_ROWS))
        yield _measure_again(server, database, options.rounds, "ours again, one appointment changed")
        yield _measure_again(server, database, options.rounds, "ours again, a minute later", timedelta(minutes=1))
    classes = round(options.appointments * CLASS_SHARE)
    progress(f"Making a clinic with {classes:,} classes")
    with _clinic(server, Clinic(options.patients, options.appointments, classes).statements()) as database:
        replace_mapping(database)
        execute(database, "analyze")
        taken: list[Taken] = []
        for number in range(options.rounds):
            _truncate(database, OURS_TABLE)
            _change(database)
            name = f"ours, a tenth of them classes, round {number + 1}"
            taken.append(_timed(server, database, name, lambda: replace_active_patients(database)))
        yield Row("ours, a tenth of them classes of six", taken, _count(database, OURS_TABLE))


def _measure_again(server: Server, database: Database, rounds: int, name: str, later: timedelta = timedelta()) -> Row:
    """Measure the replacement of an existing table. Each round uses an instant `later` than the previous round."""
    taken: list[Taken] = []
    for number in range(rounds):
        replace = partial(replace_active_patients, database, as_of=AS_OF + later * (number + 1))
        _change(database)
        vacuum(database, OURS_TABLE)
        taken.append(_timed(server, database, f"{name}, round {number + 1}", replace))
    return Row(name, taken, _count(database, OURS_TABLE))


def _table_of_rows(rows: Sequence[Row], floor: Taken, title: str) -> Table:
    """Return a table of medians and of their ratios to the hand-written statement's medians."""
    columns = [("", "{}"), ("rounds", "{}"), ("rows", "{:,}"), ("seconds", "{:.2f}"), ("from to", "{}")]
    columns += [(heading, "{:.2f}") for heading in ("by hand = 1", "CPU seconds", "by hand = 1")]
    lines: list[tuple[object, ...]] = []
    for row in rows:
        seconds, cpu = row.taken.seconds, row.taken.cpu
        lines.append((row.name, len(row.all_taken), row.rows, seconds, seconds_range(row.all_taken)))
        lines[-1] += (seconds / floor.seconds, cpu, cpu / floor.cpu)
    return table(columns, lines, title)


def _change(database: Database) -> None:
    """Update an appointment, in a column that `active_patients` does not show."""
    first = "select id from cliniko.appointments order by id limit 1"
    execute(database, f"update cliniko.appointments set updated_at = clock_timestamp() where id = ({first})")  # noqa: S608


def _require_same(database: Database) -> None:
    """Raise BenchmarkError if the rows differ from the hand-written statement's rows, or if there are no rows."""
    columns = ", ".join(tables.ACTIVE_PATIENTS.written)
    ours, others = (f"select organization_id, {columns} from {name}" for name in (OURS_TABLE, BY_HAND_ROWS))  # noqa: S608
    different = _count(database, f"(({ours} except all {others}) union all ({others} except all {ours})) as either")
    if different or not _count(database, OURS_TABLE):
        raise BenchmarkError(f"{different} rows differ from the hand-written statement's")


# contact_mapping.


def _measure_mappings(server: Server, options: argparse.Namespace) -> Generator[Mapping]:
    """Measure every clientele at every size."""
    for clientele in (MIXED, *HOSTILE):
        for size in sorted(options.sizes):
            with _clinic(server, clientele.statements(size)) as database:
                taken: list[Taken] = []
                for number in range(options.mapping_rounds):
                    _truncate(database, "cliniko.contact_mapping")
                    name = f"{clientele.name}, {size:,}, round {number + 1}"
                    taken.append(_timed(server, database, name, partial(replace_mapping, database)))
                condition = "cliniko.contact_mapping where status ="
                statuses = {
                    status: _count(database, f"{condition} '{status}'")
                    for status in ("matched", "ambiguous", "unmatched")
                }
                matched, expected = statuses["matched"], clientele.matched
                if expected is not None and matched != size * expected:
                    raise BenchmarkError(f"{clientele.name}: {matched} are matched, not {size * expected:.0f}")
                yield Mapping(clientele, size, median_of(taken), statuses)


def _table_of_mappings(mappings: Sequence[Mapping]) -> Table:
    """Return a table with the growth of CPU seconds from each size to the next."""
    columns = [("", "{}"), *((heading, "{:,}") for heading in ("patients", "matched", "ambiguous", "unmatched"))]
    columns += [(heading, "{:.2f}") for heading in ("seconds", "CPU seconds", "growth", "n log n")]
    rows: list[tuple[object, ...]] = []
    for last, mapping in zip((None, *mappings), mappings, strict=False):
        name, growth, most = mapping.clientele.name, None, None
        if last and last.clientele == mapping.clientele:
            name, growth, most = "", mapping.taken.cpu / last.taken.cpu, _n_log_n(mapping.size) / _n_log_n(last.size)
        rows.append(
            (name, mapping.size, *mapping.statuses.values(), mapping.taken.seconds, mapping.taken.cpu, growth, most)
        )
    return table(columns, rows, "contact_mapping, as many patients as contacts")


def _n_log_n(size: int) -> float:
    return size * math.log(size)


# Both.


@contextmanager
def _clinic(server: Server, statements: Sequence[str]) -> Generator[Database]:
    with server.database() as database:
        execute(database, *statements)
        vacuum(database)
        yield database


def _timed(server: Server, database: Database, name: str, work: Callable[[], None]) -> Taken:
    server.execute("checkpoint")  # so that no pages of the previous measurement are left to write
    with database.operator() as connection:
        backend = _backend(connection)
    cpu_before, begin = _cpu_of(backend), time.perf_counter()
    work()
    taken = Taken(time.perf_counter() - begin, _cpu_of(backend) - cpu_before)
    with database.operator() as connection:
        if _backend(connection) != backend:  # the pool has one connection, which all work uses
            raise BenchmarkError("the work was done by another process than the measured one")
    return noted(name, taken)


def _backend(connection: Connection) -> int:
    return connection.execute(sa.text("select pg_backend_pid()")).scalar_one()


def _cpu_of(process: int) -> float:
    """Return the CPU seconds of a process. They are more precise than the ticks of /proc/PID/stat."""
    return int(Path(f"/proc/{process}/schedstat").read_text("ascii").split()[0]) / 1e9


def _truncate(database: Database, name: str) -> None:
    execute(database, f"truncate {name}")
    vacuum(database, name)


def _count(database: Database, source: str) -> int:
    with database.operator() as connection:
        return connection.execute(sa.text(f"select count(*) from {source}")).scalar_one()  # noqa: S608 (names above)
