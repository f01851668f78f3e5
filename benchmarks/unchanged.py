"""Incremental syncs of two accounts in which nothing has changed, one a hundred times the size of the other.

They must cost the same. Takes 2 GB of disk under TMPDIR; `unchanged 10000 50000` is a quick try. Both accounts are
put into the database by SQL, as first syncs would have left them. Both have the same active patients, whose
appointments begin and leave the activity window: an hour passes between two syncs. The large one has more history and
more former patients.

Each sync runs in a fresh process, as a run worker executes it; each round has another order. Measured are the wall and
CPU seconds from the first step of the run to the end of its last, checks included, and those of
PostgreSQL's sessions.
Two syncs of each account do not count: the first computes everything, the second gathers the attendances that the
later ones begin at.
"""

import argparse
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import sqlalchemy as sa

from benchmarks.clinic_data import TYPES_AND_PRACTITIONERS, execute_each
from benchmarks.databases import server_version, vacuum
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

SIZES = (10_000, 1_000_000)
ROUNDS = 9
SYNC_INTERVAL = timedelta(hours=1)
MAX_SYNC_SECONDS = 120

MAX_SECONDS = 1.5
MAX_GROWTH = 1.1

ACTIVE_PATIENTS = 1_000
# Shares of an account's records: patients, and as many contacts; attendees.
_PATIENTS = 0.06
_ATTENDEES = 0.08

BENCHMARK = Benchmark(
    measures="syncs of unchanged accounts of 10,000 and of 1,000,000 records",
    duration="five minutes",
    targets=(f"at most {MAX_SECONDS} s", f"large account: at most {MAX_GROWTH} times the small one's (CPU) seconds"),
)

# Each active patient comes every three weeks, at a time of day of their own, and has the next appointment; some of them
# in classes. All else was more than four months ago.
SEED = f"""
insert into cliniko.patients
    (organization_id, id, first_name, last_name, email, archived_at, merged_into_id, created_at, updated_at)
select :organization_id, (1300000000000000000 + n)::text, 'First' || n, 'Last' || n % 5000,
    'patient' || n || '@example.com',
    case when n > :active and n % 10 = 0 then now() - interval '1 year' end,
    case when n > :active and n % 97 = 0 then (1300000000000000000 + n - 1)::text end,
    now() - interval '3 years', now() - interval '1 year'
from generate_series(1, :patients) as n;

insert into public.contacts (organization_id, cliniko_patient_id, name, email)
select :organization_id, case when n % 3 = 0 then (1300000000000000000 + n)::text end,
    'First' || n || ' Last' || n % 5000, 'patient' || n || '@example.com'
from generate_series(1, :patients) as n where n % 20 <> 7 or n <= :active;

{TYPES_AND_PRACTITIONERS};

insert into cliniko.appointments
    (organization_id, kind, id, patient_id, appointment_type_id, practitioner_id, starts_at, ends_at, cancelled_at,
        did_not_arrive, created_at, updated_at)
select :organization_id, 'individual', (2600000000000000000 + n)::text,
    (1300000000000000000 + case when n <= 4 * :active then 1 + n % :active else 1 + n % :patients end)::text,
    (1 + n % 2)::text, (1 + n % 5)::text, starts_at, starts_at + interval '30 minutes',
    case when n % 13 = 0 then starts_at - interval '1 day' end, n % 29 = 0 and starts_at < now(),
    starts_at - interval '30 days', least(starts_at, now() - interval '1 day')
from (
    select n,
        case when n <= 4 * :active
            then :now + interval '21 days' * (1 - n / :active) - interval '1 minute' * (n % :active * 30)
            else :now - interval '120 days' - interval '1 minute' * (n::bigint * 7919 % 1300000)
        end as starts_at
    from generate_series(1, :individual) as n
) as booked;

insert into cliniko.appointments
    (organization_id, kind, id, appointment_type_id, practitioner_id, starts_at, ends_at, did_not_arrive, created_at,
        updated_at)
select :organization_id, 'group', (2700000000000000000 + n)::text, '1', '1', starts_at, starts_at + interval '1 hour',
    false, starts_at - interval '30 days', least(starts_at, now() - interval '1 day')
from (
    select n,
        case when n <= 50 then :now + interval '5 days' - interval '37 hours' * n
            else :now - interval '120 days' - interval '1 minute' * (n::bigint * 7919 % 1300000)
        end as starts_at
    from generate_series(1, :classes) as n
) as planned;

insert into cliniko.attendees
    (organization_id, id, booking_id, patient_id, arrived, cancelled_at, created_at, updated_at)
select :organization_id, (3900000000000000000 + n)::text, (2700000000000000000 + 1 + n / 8)::text,
    (1300000000000000000 + case when n < 400 then 1 + n * 17 % :active else 1 + n * 17 % :patients end)::text,
    n % 9 > 0, case when n % 11 = 0 then now() - interval '1 day' end, now() - interval '200 days',
    now() - interval '1 day'
from generate_series(0, :attendees - 1) as n;

insert into cliniko.crawls
    (organization_id, resource, started_at, completed_at, records, is_full, horizon, cursor)
select :organization_id, resource, now(), now(), 1, true, now(), now() - interval '3 minutes'
from unnest(array[
    'patients', 'individual_appointments', 'group_appointments', 'attendees', 'appointment_types', 'practitioners'
]) as resource
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("sizes", metavar="RECORDS", type=int, nargs="*", default=SIZES, help="sizes of accounts")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measured syncs of each account")


def run(options: argparse.Namespace, report: Report) -> None:
    """Measure all sizes and report."""
    sizes = sorted(options.sizes)
    with _prepared(sizes) as (runtime, environ):
        measured = _measure(runtime, environ, sizes, options.rounds)
        report.show_machine(server_version(runtime.database), "dagster", "psycopg")
    rows = [
        (
            f"{size:,}",
            str(len(taken)),
            f"{median_of(taken).seconds:.2f}",
            seconds_range(taken),
            f"{median_of(taken).cpu:.2f}",
            f"{median_of(taken).server_cpu:.2f}",
        )
        for size, taken in measured.items()
    ]
    report.show(table(("records", "rounds", "seconds", "from to", "CPU seconds", "of PostgreSQL"), rows))
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
            _seed(runtime, size)
        vacuum(runtime.database)
        yield runtime, environ


def _seed(runtime: Runtime, size: int) -> None:
    patients = max(round(size * _PATIENTS), ACTIVE_PATIENTS + ACTIVE_PATIENTS // 5)
    attendees = round(size * _ATTENDEES)
    classes = 1 + attendees // 8
    values: dict[str, Any] = {
        "organization_id": _name(size),
        "now": datetime.now(UTC),
        "active": ACTIVE_PATIENTS,
        "patients": patients,
        "individual": size - 2 * patients - attendees - classes,
        "classes": classes,
        "attendees": attendees,
    }
    execute_each(runtime.database, _name(size), SEED, values)


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
