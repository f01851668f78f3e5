"""Incremental syncs of two accounts in which nothing has changed, one a hundred times the size of the other.

They must cost the same. Takes 2 GB of disk under TMPDIR; `unchanged 10000 50000` is a quick try. Both accounts are
put into the database by SQL, as first syncs would have left them. Both have the same active patients, whose
appointments begin and leave the activity window: an hour passes between two syncs. The large one has more history and
more former patients.

Each sync runs in a fresh process, as a run worker executes it; each round has another order. Measured are the wall and
CPU seconds from the first step of the run to the end of its last, checks included, and those of
PostgreSQL's sessions. Two syncs of each account do not count: the first computes everything, the second gathers the
attendances that the later ones begin at.
"""

import argparse
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import sqlalchemy as sa

from benchmarks.clinic_data import CLASS_SIZE, Clinic
from benchmarks.databases import execute, server_version, vacuum
from benchmarks.measuring import Stopwatch, Taken, median_of, noted, seconds_range
from benchmarks.pipelines import add_organization, opened_pipeline, run_job
from benchmarks.processes import run_fresh, session_cpu_seconds
from benchmarks.reporting import Benchmark, BenchmarkError, Report, Target, progress, table
from cliniko_pipeline.definitions import build_definitions
from cliniko_pipeline.orchestration.instance import open_instance
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.sandbox.server import running_sandbox
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline.sync_options import JOB, SyncOptions, run_config

SYNC_INTERVAL = timedelta(hours=1)
MAX_SYNC_SECONDS = 600

MAX_SECONDS = 1.5
MAX_GROWTH = 1.1

ACTIVE_PATIENTS = 1_000
PATIENT_SHARE = 0.06
CLASS_SHARE = 0.013
"""Of an account's records. Each patient is two, with the contact; each class has attendees, too."""

BENCHMARK = Benchmark(
    measures="syncs of unchanged accounts of 10,000 and of 1,000,000 records",
    duration="five minutes",
    targets=(f"at most {MAX_SECONDS} s", f"large account: at most {MAX_GROWTH} times the small one's (CPU) seconds"),
    options={"records": ((10_000, 1_000_000), "sizes of accounts"), "--rounds": (9, "measured syncs of each account")},
)

CRAWLS = """
insert into cliniko.crawls (organization_id, resource, started_at, completed_at, records, is_full, horizon, cursor)
select '{}', resource, now(), now(), 1, true, now(), now() - interval '3 minutes'
from unnest(array[
    'patients', 'individual_appointments', 'group_appointments', 'attendees', 'appointment_types', 'practitioners'
]) as resource
"""


def run(options: argparse.Namespace, report: Report) -> None:
    """Measure all sizes and report."""
    sizes = sorted(options.records)
    with _prepared(sizes) as (runtime, environ):
        measured = _measure(runtime, environ, sizes, options.rounds)
        report.show_machine(server_version(runtime.database), "dagster", "psycopg")
    rows: list[tuple[object, ...]] = []
    for size, taken in measured.items():
        middle = median_of(taken)
        rows.append((size, len(taken), middle.seconds, seconds_range(taken), middle.cpu, middle.server_cpu))
    columns = [("records", "{:,}"), ("rounds", "{}"), ("seconds", "{:.2f}"), ("from to", "{}")]
    report.show(table([*columns, ("CPU seconds", "{:.2f}"), ("of PostgreSQL", "{:.2f}")], rows))
    small, large = sizes[0], sizes[-1]
    # The syncs of one round had the machine in the same state.
    rounds = list(zip(measured[large], measured[small], strict=True))
    growth = median(of.seconds / to.seconds for of, to in rounds)
    cpu_growth = median((of.cpu + of.server_cpu) / (to.cpu + to.server_cpu) for of, to in rounds)
    which = f"{large:,} / {small:,} records, median of the rounds"
    report.show_verdicts(
        [
            Target(f"Seconds of {large:,} records", median_of(measured[large]).seconds, MAX_SECONDS),
            Target(f"Seconds, {which}", growth, MAX_GROWTH),
            Target(f"CPU seconds of all processes, {which}", cpu_growth, MAX_GROWTH),
        ]
    )


@contextmanager
def _prepared(sizes: Sequence[int]) -> Generator[tuple[Runtime, dict[str, str]]]:
    """Set up a pipeline with an account of each size, as its first sync would leave it."""
    accounts = {size: Account(_name(size), "au1", f"{size}-au1") for size in sizes}
    with (
        running_sandbox(list(accounts.values())) as sandbox,
        opened_pipeline(sandbox.host) as (runtime, environ),
    ):
        for size, account in accounts.items():
            progress(f"Making an account of {size:,} records")
            add_organization(runtime, _name(size), account.api_key, sandbox.base_url(account))
            _store(runtime, size)
        vacuum(runtime.database)
        yield runtime, environ


def _store(runtime: Runtime, size: int) -> None:
    """Store an account of `size` records: the active patients, and former ones with their appointments."""
    now = datetime.now(UTC)
    active = Clinic(ACTIVE_PATIENTS, 4 * ACTIVE_PATIENTS, 50, _name(size), now, days_ago=63, days=84)
    records = size - 2 * active.patients - active.appointments - active.classes * CLASS_SIZE
    patients, classes = round(records * PATIENT_SHARE), round(records * CLASS_SHARE)
    appointments = records - 2 * patients - classes * CLASS_SIZE
    first = active.appointments
    former = Clinic(patients, appointments, classes, _name(size), now, days=1065 - 120, first=first)
    execute(runtime.database, *active.statements(), *former.statements(), CRAWLS.format(_name(size)))


def _measure(
    runtime: Runtime, environ: Mapping[str, str], sizes: Sequence[int], rounds: int
) -> dict[int, Sequence[Taken]]:
    """Sync each account twice without counting, then in rounds."""
    taken: dict[int, list[Taken]] = {size: [] for size in sizes}
    now = datetime.now(UTC)
    home = runtime.settings.home
    for number in range(-1, rounds + 1):
        for size in sizes if number % 2 else sizes[::-1]:
            as_of = now + (number + 1) * SYNC_INTERVAL
            one: Taken = run_fresh(
                "benchmarks.unchanged:sync", _name(size), as_of, environ=environ, folder=home, seconds=MAX_SYNC_SECONDS
            )
            noted(f"Round {number}, {size:,} records" if number > 0 else f"Not counted, {size:,} records", one)
            if number > 0:
                taken[size].append(one)
    for size in sizes:
        with runtime.database.organization(_name(size)) as connection:
            active = connection.execute(sa.text("select count(*) from public.active_patients")).scalar_one()
        if active < ACTIVE_PATIENTS * 0.9:
            raise BenchmarkError(f"the account of {size:,} records has only {active} active patients")
    return dict(taken)


def sync(organization_id: str, as_of: datetime) -> Taken:
    """Run the sync job in this process, on the pipeline that the environment names."""
    with open_runtime(load_settings()) as runtime, open_instance(runtime) as instance:
        home = Path(runtime.settings.home)
        watch = Stopwatch(lambda: session_cpu_seconds(home))
        job = build_definitions(runtime=runtime).resolve_job_def(JOB)
        config = run_config(SyncOptions(as_of, full=False, accept_deletions=False))
        run_job(job, instance, organization_id, watch, config)
    return watch.taken()


def _name(size: int) -> str:
    return f"clinic-{size}"
