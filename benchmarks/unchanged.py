"""An incremental sync of an account in which nothing has changed, for accounts of two sizes: it must cost the same.

`make benchmark-unchanged`, on Linux, takes five minutes and 2 GB of disk under TMPDIR. It brings its own database, into
which it puts both accounts by SQL, as first syncs would have left them, and a simulated Cliniko, which has nothing to
tell. Both have the same active people, whose appointments begin and leave the window as time goes on: an hour from one
sync to the next. What the large one has more is history, and people who do not come any more. `python -m
benchmarks.unchanged 10000 50000` is a quick try with other numbers of records.

Each sync runs in a fresh process, as a run worker executes it, in turn, in another order in each round. What is
measured begins with the first step of the run and ends with its last, the checks included: wall seconds, and the CPU
seconds of the process and of PostgreSQL's sessions. The first sync of each account computes everything, and the first
in which nothing has changed gathers the attendances that the later ones begin at: these two are told and not counted.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import dagster as dg
import sqlalchemy as sa
from rich.table import Table

from benchmarks.telling import CONSOLE, load, machine, say
from cliniko_pipeline.credentials.vault import ClinikoCredentials
from cliniko_pipeline.definitions import build_definitions
from cliniko_pipeline.orchestration.instance import open_instance
from cliniko_pipeline.orchestration.partitions import ensure_partitions
from cliniko_pipeline.postgres import organizations, schema
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.sandbox.server import running_sandbox
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline.sync_options import JOB, SyncOptions, run_config

SIZES = (10_000, 1_000_000)
ROUNDS = 9

MOST_SECONDS = 1.5
MOST_GROWTH = 1.1

ACTIVE_PEOPLE = 1_000
BETWEEN_SYNCS = timedelta(hours=1)

LONGEST_SECONDS = 120
ROOT = Path(__file__).parents[1]
_NOT_OURS = ("DATABASE_URL", "CREDENTIALS_ENCRYPTION_KEY", "DAGSTER_", "CLINIKO_", "PYTHONDONTWRITEBYTECODE")
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")

# Of an account's records so many are patients, and as many contacts; so many attendees of classes.
_PEOPLE = 0.06
_ATTENDEES = 0.08

# As a first sync would have left it. Everyone of the first people comes every three weeks, at a time of day of their
# own, and has the next appointment; so many of them in classes. All else was more than four months ago.
SEED = """
insert into cliniko.patients
    (organization_id, id, first_name, last_name, email, archived_at, merged_into_id, created_at, updated_at)
select :organization_id, (1300000000000000000 + n)::text, 'First' || n, 'Last' || n % 5000,
    'patient' || n || '@example.com',
    case when n > :active and n % 10 = 0 then now() - interval '1 year' end,
    case when n > :active and n % 97 = 0 then (1300000000000000000 + n - 1)::text end,
    now() - interval '3 years', now() - interval '1 year'
from generate_series(1, :people) as n;

insert into public.contacts (organization_id, cliniko_patient_id, name, email)
select :organization_id, case when n % 3 = 0 then (1300000000000000000 + n)::text end,
    'First' || n || ' Last' || n % 5000, 'patient' || n || '@example.com'
from generate_series(1, :people) as n where n % 20 <> 7 or n <= :active;

insert into cliniko.appointment_types (organization_id, id, name, created_at, updated_at)
select :organization_id, n::text, 'Type ' || n, now() - interval '3 years', now() - interval '3 years'
from generate_series(1, 9) as n;
insert into cliniko.practitioners (organization_id, id, name, created_at, updated_at)
select :organization_id, n::text, 'Practitioner ' || n, now() - interval '3 years', now() - interval '3 years'
from generate_series(1, 5) as n;

insert into cliniko.appointments
    (organization_id, kind, id, patient_id, appointment_type_id, practitioner_id, starts_at, ends_at, cancelled_at,
        did_not_arrive, created_at, updated_at)
select :organization_id, 'individual', (2600000000000000000 + n)::text,
    (1300000000000000000 + case when n <= :current then 1 + n % :active else 1 + n % :people end)::text,
    (1 + n % 9)::text, (1 + n % 5)::text, starts_at, starts_at + interval '30 minutes',
    case when n % 13 = 0 then starts_at - interval '1 day' end, n % 29 = 0 and starts_at < now(),
    starts_at - interval '30 days', least(starts_at, now() - interval '1 day')
from (
    select n,
        case when n <= :current
            then :now + interval '21 days' * (1 - n / :active) - interval '1 minute' * (n % :active * 30)
            else :now - interval '120 days' - interval '1 minute' * (n::bigint * 7919 % 1300000)
        end as starts_at
    from generate_series(1, :individual) as n
) as booked;

insert into cliniko.appointments
    (organization_id, kind, id, appointment_type_id, practitioner_id, starts_at, ends_at, did_not_arrive, created_at,
        updated_at)
select :organization_id, 'group', (2700000000000000000 + n)::text, '9', '1', starts_at, starts_at + interval '1 hour',
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
    (1300000000000000000 + case when n < 400 then 1 + n * 17 % :active else 1 + n * 17 % :people end)::text,
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


@dataclass(frozen=True)
class Taken:
    """What a sync took from the start of its first step to the end of its last."""

    seconds: float
    cpu: float
    server_cpu: float
    active: int


@dataclass(frozen=True)
class Measurement:
    """All syncs of one account."""

    records: int
    taken: list[Taken]

    def middle(self, figure: str) -> float:
        """The median."""
        return median(getattr(one, figure) for one in self.taken)


def main() -> int:
    """Measures and prints; the exit code is 1 where a target is not met."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was started, too
    parser = argparse.ArgumentParser(description="Syncs of accounts in which nothing has changed.")
    parser.add_argument("sizes", metavar="RECORDS", type=int, nargs="*", default=SIZES, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    parser.add_argument("--sync", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sync:
        return _measured_here(json.loads(options.sync))
    if not Path("/proc/self/stat").exists():
        CONSOLE.print("CPU seconds are read from /proc, which this system does not have.")
        return 1
    with prepared(sorted(options.sizes)) as (runtime, environ):
        CONSOLE.print(_versions(runtime), highlight=False)
        CONSOLE.print(f"Load of the machine (1, 5 and 15 minutes): {load()} at the beginning", highlight=False)
        measured = measure(environ, sorted(options.sizes), options.rounds)
        CONSOLE.print(f"{load()} at the end", highlight=False)
    return report(measured)


@contextmanager
def prepared(sizes: Sequence[int]) -> Generator[tuple[Runtime, dict[str, str]]]:
    """A database with an account of each size, its first sync done; and the environment of those to come."""
    with tempfile.TemporaryDirectory(prefix="cliniko-unchanged-") as folder:
        accounts = [Account(_name(size), "au1", f"{size}-au1") for size in sizes]
        with running_sandbox(accounts) as sandbox:
            environ = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
            environ |= {
                "CLINIKO_PIPELINE_HOME": folder,
                "CLINIKO_REQUESTS_PER_MINUTE": "100000",
                "CLINIKO_ALLOWED_HOSTS": sandbox.host,
            }
            with open_runtime(load_settings(environ)) as runtime:
                schema.migrate(runtime.database, create_application_tables=True)
                for size, account in zip(sizes, accounts, strict=True):
                    say(f"{size:,} records")
                    credentials = ClinikoCredentials(account.api_key, None, sandbox.base_url(account))
                    encrypted = runtime.vault.encrypt(credentials)
                    with runtime.database.operator() as connection:
                        organizations.save(connection, _name(size), _name(size), encrypted, validated=False)
                    seed(runtime, size, datetime.now(UTC))
                with runtime.database.operator_statement() as connection:
                    # As the server does by itself, some time later.
                    connection.execute(sa.text("vacuum analyze"))
                yield runtime, environ


def seed(runtime: Runtime, size: int, now: datetime) -> None:
    """Stores an account of so many records."""
    people = max(round(size * _PEOPLE), ACTIVE_PEOPLE + ACTIVE_PEOPLE // 5)
    attendees = round(size * _ATTENDEES)
    classes = 1 + attendees // 8
    parameters: dict[str, Any] = {
        "organization_id": _name(size),
        "now": now,
        "active": ACTIVE_PEOPLE,
        "current": 4 * ACTIVE_PEOPLE,
        "people": people,
        "individual": size - 2 * people - attendees - classes,
        "classes": classes,
        "attendees": attendees,
    }
    with runtime.database.organization(_name(size)) as tenant, runtime.database.operator() as operator:
        for text in SEED.split(";"):
            connection = operator if "public.contacts" in text else tenant
            connection.execute(sa.text(text), {name: value for name, value in parameters.items() if f":{name}" in text})


def measure(environ: Mapping[str, str], sizes: Sequence[int], rounds: int) -> list[Measurement]:
    """A first sync of each, which computes everything, one that keeps what the others begin at, and then the rounds: an
    hour is between two syncs.
    """
    taken: dict[int, list[Taken]] = {size: [] for size in sizes}
    now = datetime.now(UTC)
    for number in range(-1, rounds + 1):
        for size in sizes if number % 2 else sizes[::-1]:
            one = _sync(environ, size, now + (number + 1) * BETWEEN_SYNCS)
            told = f"{size:,} records: {one.seconds:.2f} s, CPU {one.cpu:.2f} + {one.server_cpu:.2f} s"
            if number > 0:
                say(f"Round {number}, {told}")
                taken[size].append(one)
            else:
                name = "First sync in which nothing has changed" if number == 0 else "First sync"
                CONSOLE.print(f"{name}, not counted, {told}", highlight=False)
    active = {one.active for each in taken.values() for one in each}
    if not active or min(active) < ACTIVE_PEOPLE * 0.9:
        raise SystemExit(f"The accounts are not what was to be measured: {active} active.")
    return [Measurement(size, each) for size, each in taken.items()]


def report(measured: Sequence[Measurement]) -> int:
    """Prints the table and whether the targets are met; the exit code."""
    table = Table()
    for heading in ("records", "rounds", "seconds", "from to", "CPU seconds", "of PostgreSQL", "active patients"):
        table.add_column(heading, justify="right")
    for one in measured:
        seconds = [taken.seconds for taken in one.taken]
        table.add_row(
            f"{one.records:,}",
            str(len(one.taken)),
            f"{one.middle('seconds'):.2f}",
            f"{min(seconds):.2f} {max(seconds):.2f}",
            f"{one.middle('cpu'):.2f}",
            f"{one.middle('server_cpu'):.2f}",
            f"{one.taken[-1].active:,}",
        )
    CONSOLE.print(table)
    small, large = measured[0], measured[-1]
    seconds = large.middle("seconds")
    # In each round both had the machine as it was at that moment.
    rounds = list(zip(large.taken, small.taken, strict=True))
    growth = median(of.seconds / to.seconds for of, to in rounds)
    cpu = median((of.cpu + of.server_cpu) / (to.cpu + to.server_cpu) for of, to in rounds)
    targets = [
        (f"Seconds of {large.records:,} records", seconds, MOST_SECONDS),
        (f"Seconds, {large.records:,} : {small.records:,} records, median of the rounds", growth, MOST_GROWTH),
        (f"CPU seconds in all, {large.records:,} : {small.records:,} records, median of the rounds", cpu, MOST_GROWTH),
    ]
    for name, found, most in targets:
        CONSOLE.print(f"{name}: {found:.2f} (at most {most}): {'met' if found <= most else 'NOT MET'}")
    return 1 if any(found > most for _, found, most in targets) else 0


def _sync(environ: Mapping[str, str], size: int, as_of: datetime) -> Taken:
    """One sync, in a process of its own."""
    told = json.dumps({"organization_id": _name(size), "as_of": as_of.isoformat()})
    command = [sys.executable, "-m", "benchmarks.unchanged", "--sync", told]
    done = subprocess.run(  # noqa: S603 (ours, no shell)
        command, env=dict(environ), cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_SECONDS, check=False
    )
    if done.returncode:
        raise SystemExit(f"The sync failed:\n{done.stderr[-3000:]}")
    return Taken(**json.loads(done.stdout.splitlines()[-1]))


def _measured_here(told: Mapping[str, str]) -> int:
    """Runs the job as a run worker does, and tells what it took."""
    organization_id, as_of = told["organization_id"], datetime.fromisoformat(told["as_of"])
    with open_runtime(load_settings()) as runtime, open_instance(runtime) as instance:
        definitions = build_definitions(runtime=runtime)
        ensure_partitions(instance, [organization_id])
        moments: list[tuple[float, float, float]] = []

        def note(event: dg.EventLogEntry) -> None:
            kind = event.dagster_event.event_type if event.dagster_event is not None else None
            if kind is dg.DagsterEventType.STEP_SUCCESS or (kind is dg.DagsterEventType.STEP_START and not moments):
                server = _server_cpu(runtime)
                moments.append((time.perf_counter(), time.process_time(), server))

        run_id = str(uuid4())
        instance.add_event_listener(run_id, note)  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
        result = definitions.resolve_job_def(JOB).execute_in_process(
            instance=instance,
            partition_key=organization_id,
            run_config={
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                **run_config(SyncOptions(as_of, full=False, accept_deletions=False)),
            },
            run_id=run_id,
        )
        if not result.success:
            return 1
        first, last = moments[0], moments[-1]
        with runtime.database.organization(organization_id) as connection:
            active = connection.execute(sa.text("select count(*) from public.active_patients")).scalar_one()
    seconds, cpu, server_cpu = (end - start for start, end in zip(first, last, strict=True))
    sys.stdout.write(json.dumps(asdict(Taken(seconds, cpu, server_cpu, active))) + "\n")
    return 0


def _server_cpu(runtime: Runtime) -> float:
    """CPU seconds so far of the embedded PostgreSQL's sessions; what the server does by itself is not the sync's."""
    folder = runtime.settings.home / "postgres" / "data"
    number = int((folder / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
    processes: list[str] = []
    for each in Path(f"/proc/{number}/task").glob("*/children"):
        processes += each.read_text(encoding="ascii").split()
    ticks = 0
    for process in processes:
        with suppress(OSError):  # it has ended meanwhile
            if b"[local]" in Path(f"/proc/{process}/cmdline").read_bytes():
                _, _, fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")
                ticks += sum(map(int, fields.split()[11:13]))
    return ticks / _TICKS_A_SECOND


def _name(size: int) -> str:
    return f"clinic-{size}"


def _versions(runtime: Runtime) -> str:
    with runtime.database.operator() as connection:
        return machine(connection.execute(sa.text("show server_version")).scalar_one(), "dagster", "psycopg")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
