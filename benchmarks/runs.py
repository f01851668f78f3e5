"""What a sync costs that finds nothing changed, and how many of them go through in an hour: launched by the schedule,
for many organizations at once, beside an empty Dagster project.

`make benchmark-runs`, on Linux, takes a quarter of an hour and 2 GB of disk under TMPDIR. It brings its own database, a
simulated Cliniko, Dagster's daemon and two code servers, each in processes of their own: one serves the pipeline, as
shipped, the other `empty_runs`. All organizations become due at once, so that one tick of `cliniko_syncs` requests all
of them; before and after that, runs of the empty project are launched in the same way. `python -m benchmarks.runs
--organizations 8` is a quick try; `--settings` also measures with other settings of Dagster's.

CPU seconds are the kernel's. What a code server's children used is charged to it when they have ended, so none of it is
missed. A peak is the most resident memory that a process ever had (VmHWM), looked at until it ends. 1 MB is 10^6 bytes.
"""

import argparse
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Self

import dagster as dg
import sqlalchemy as sa
import yaml
from rich.table import Table

from benchmarks import empty_runs
from benchmarks.telling import CONSOLE, machine, say
from cliniko_pipeline.credentials.vault import ClinikoCredentials
from cliniko_pipeline.definitions import build_definitions
from cliniko_pipeline.orchestration.instance import instance_environment, open_instance
from cliniko_pipeline.orchestration.partitions import ensure_partitions
from cliniko_pipeline.orchestration.runs import run_sync
from cliniko_pipeline.postgres import organizations, schema
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.sandbox.generated import generated_account
from cliniko_pipeline.sandbox.server import running_sandbox
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline.sync_options import JOB, SyncOptions

ORGANIZATIONS = 200
APPOINTMENTS = 1_000
APPOINTMENTS_OF_A_PATIENT = 10
GROUP_SHARE = 0.1

LEAST_AN_HOUR = 1_000
MOST_RATIO = 2.0

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "as shipped": {},
    "max_concurrent_runs: 2": {"concurrency": {"runs": {"max_concurrent_runs": 2}}},
    "max_concurrent_runs: 8": {"concurrency": {"runs": {"max_concurrent_runs": 8}}},
    "dequeue_interval_seconds: 5": {"run_queue": {"dequeue_interval_seconds": 5}},
    "dequeue_use_threads: true": {"run_queue": {"dequeue_use_threads": True, "dequeue_num_workers": 4}},
}
"""Changes of the shipped dagster.yaml, by what the table calls them."""

OURS = "ours"
EMPTY = "empty"
CODE = {
    OURS: ("cliniko_pipeline", "cliniko_pipeline.definitions", JOB, "cliniko_syncs"),
    EMPTY: ("empty_runs", "benchmarks.empty_runs", empty_runs.JOB, "empty_runs"),
}
"""Location, module, job and schedule of each."""

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BEFORE_THE_TICK = 8
START_SECONDS = 150
END_SECONDS = 30
LONGEST_SECONDS = 3600

# Without compiled modules, which the last of these keeps Python from writing, every run would compile them anew.
_NOT_OURS = ("DATABASE_URL", "CREDENTIALS_ENCRYPTION_KEY", "DAGSTER_", "CLINIKO_", "PYTHONDONTWRITEBYTECODE")
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Measurement:
    """What a number of runs took that one tick requested.

    Attributes:
        seconds: from the launch of the first run to the end of the last.
        run_seconds: of each run, from its launch to its end.
        worker_cpu: CPU seconds of all the runs' own processes.
        peaks: MB, of each run's own process.
        cpu: CPU seconds of everything else, by whose they are.
        foreign_cpu: CPU seconds of programs that are no part of this.
        events, connections: how many events Dagster wrote, and how many connections PostgreSQL had.
    """

    runs: int
    seconds: float
    run_seconds: Sequence[float]
    worker_cpu: float
    peaks: Sequence[float]
    cpu: Mapping[str, float]
    foreign_cpu: float
    events: int
    connections: int

    @property
    def an_hour(self) -> float:
        """So many runs."""
        return self.runs / self.seconds * 3600

    def __add__(self, other: "Measurement") -> "Measurement":
        return Measurement(
            self.runs + other.runs,
            self.seconds + other.seconds,
            [*self.run_seconds, *other.run_seconds],
            self.worker_cpu + other.worker_cpu,
            [*self.peaks, *other.peaks],
            {name: self.cpu[name] + other.cpu[name] for name in self.cpu},
            self.foreign_cpu + other.foreign_cpu,
            self.events + other.events,
            self.connections + other.connections,
        )


@dataclass(frozen=True)
class Served:
    """What the simulated Cliniko's process tells of itself, once it serves."""

    process: int
    host: str
    api_url: str
    api_key: str
    patient_ids: list[str]


@dataclass(frozen=True)
class Services:
    """The numbers of Dagster's processes, and its home."""

    home: Path
    daemon: int
    code_servers: Mapping[str, int]


def main() -> int:
    """Measures and prints; the exit code is 1 where runs are too few an hour, or cost too much."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was started, too
    parser = argparse.ArgumentParser(description="Cost and rate of syncs that find nothing changed.")
    parser.add_argument("--organizations", type=int, default=ORGANIZATIONS, help="default: %(default)s")
    parser.add_argument("--appointments", type=int, default=APPOINTMENTS, help="of each; default: %(default)s")
    parser.add_argument("--settings", action="store_true", help="also measure with other settings of Dagster's")
    options = parser.parse_args()
    if not Path("/proc/self/stat").exists():
        CONSOLE.print("CPU seconds and peaks are read from /proc, which this system does not have.")
        return 1
    with tempfile.TemporaryDirectory(prefix="cliniko-runs-") as folder, ExitStack() as stack:
        served = stack.enter_context(simulated_cliniko(options.appointments))
        environ = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
        environ |= {
            "CLINIKO_PIPELINE_HOME": folder,
            "CLINIKO_REQUESTS_PER_MINUTE": "100000",  # of the first syncs, which all have the same key
            "CLINIKO_ALLOWED_HOSTS": served.host,
            # What is due, the benchmark says.
            "CLINIKO_SYNC_EVERY_MINUTES": "1440",
            "CLINIKO_FULL_SYNC_AT": "off",
        }
        runtime = stack.enter_context(open_runtime(load_settings(environ)))
        schema.migrate(runtime.database, create_application_tables=True)
        ids = [f"clinic-{number:04}" for number in range(1, options.organizations + 1)]
        first_syncs(runtime, ids, served)
        code = 0
        CONSOLE.print(_versions(runtime), highlight=False)
        for name, changes in SETTINGS.items():
            if options.settings or not changes:
                code = max(code, report(name, *measure(runtime, environ, served, ids, changes), options.appointments))
    return code


def first_syncs(runtime: Runtime, ids: Sequence[str], served: Served) -> None:
    """Adds the organizations and syncs each for the first time, in this process and without Dagster's storage.

    All have the same account, the requests of which nobody counts here.
    """
    encrypted = runtime.vault.encrypt(ClinikoCredentials(served.api_key, None, served.api_url))
    definitions = build_definitions(runtime=runtime)
    with dg.DagsterInstance.ephemeral() as instance:  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
        ensure_partitions(instance, list(ids))
        for number, organization_id in enumerate(ids):
            if number % 50 == 0:
                say(f"First syncs: {number} of {len(ids)}")
            with runtime.database.operator() as connection:
                organizations.save(connection, organization_id, organization_id, encrypted, validated=False)
                connection.execute(
                    sa.text(
                        "insert into public.contacts (organization_id, cliniko_patient_id, name)"
                        " select :organization_id, id, 'Contact ' || id from unnest(cast(:ids as text[])) as id"
                    ),
                    {"organization_id": organization_id, "ids": served.patient_ids},
                )
            error = run_sync(definitions, instance, runtime, organization_id, SyncOptions()).error
            if error is not None:
                raise SystemExit(f"The first sync of {organization_id} failed: {error}")
    _set_due(runtime, due=False)
    with runtime.database.operator() as connection:
        connection.execute(sa.text("analyze"))  # as the server does by itself, a minute later


def measure(
    runtime: Runtime,
    environ: Mapping[str, str],
    served: Served,
    ids: Sequence[str],
    changes: Mapping[str, Mapping[str, Any]],
) -> tuple[Measurement, Measurement]:
    """Ours; and empty ones, as many, of which half came before and half after."""
    with open_instance(runtime) as instance:
        ensure_partitions(instance, list(ids))
    half = list(ids[: len(ids) // 2])
    with running_dagster(runtime, environ, changes) as services:
        before = _measured(runtime, services, served, EMPTY, half)
        ours = _measured(runtime, services, served, OURS, ids)
        _require_unchanged(runtime, ids)
        return ours, before + _measured(runtime, services, served, EMPTY, half)


def _measured(runtime: Runtime, services: Services, served: Served, what: str, ids: Sequence[str]) -> Measurement:
    _wait_for_the_tick()
    say(f"{len(ids)} runs: {what}")
    last = _scalar(runtime, "select coalesce(max(id), 0) from dagster.runs")
    before, before_in_storage = _spent(runtime, services, served), _stored(runtime)
    with Workers(services.code_servers[what]) as workers:
        _request(runtime, services, what, ids)
        runs = f"select count(*) from dagster.runs where id > {last}"  # noqa: S608 (a number)
        _wait(lambda: _scalar(runtime, runs) > 0, START_SECONDS, "the tick's first run")
        _wait(lambda: len(_times(runtime, what, last)) == len(ids), LONGEST_SECONDS, "the ends of the runs")
        # The code server asks for the ends of its children twice a second.
        _wait(lambda: not workers.alive(), END_SECONDS, "the ends of the processes")
    after, after_in_storage = _spent(runtime, services, served), _stored(runtime)
    spent = {name: after[name] - before[name] for name in after}
    times = _times(runtime, what, last)
    if len(workers.peaks) < len(ids):
        raise SystemExit(f"{len(workers.peaks)} processes were seen, of {len(ids)} runs.")
    if len(workers.peaks) > len(ids):  # no reason to throw the rest away: CPU seconds are of all of them
        say(f"{len(workers.peaks)} processes were seen, of {len(ids)} runs")
    events, connections = (now - then for now, then in zip(after_in_storage, before_in_storage, strict=True))
    everything = spent.pop("everything")
    return Measurement(
        runs=len(ids),
        seconds=max(end for _, end in times) - min(launch for launch, _ in times),
        run_seconds=[end - launch for launch, end in times],
        worker_cpu=spent.pop(f"runs of {what}"),
        peaks=list(workers.peaks.values()),
        cpu={
            "daemon": spent["daemon"],
            "code server": spent[f"code server of {what}"],
            "PostgreSQL": spent["PostgreSQL"],
            "simulated Cliniko": spent["simulated Cliniko"],
        },
        foreign_cpu=everything - sum(after[name] - before[name] for name in after if name != "everything"),
        events=events,
        connections=connections,
    )


def _request(runtime: Runtime, services: Services, what: str, ids: Sequence[str]) -> None:
    """Has the next tick request a run for each, and the ticks after it none."""
    if what == EMPTY:
        (services.home / empty_runs.DUE_FILE).write_text("\n".join(ids), encoding="utf-8")
        return
    _set_due(runtime, due=True)
    _wait(
        lambda: not _scalar(runtime, "select count(*) from cliniko.scheduling where requested_at is null"),
        START_SECONDS,
        "the tick",
    )
    _set_due(runtime, due=False)


def _set_due(runtime: Runtime, *, due: bool) -> None:
    requested_at = "null" if due else "now() + interval '10 days'"
    with runtime.database.operator() as connection:
        connection.execute(sa.text(f"update cliniko.scheduling set requested_at = {requested_at}"))  # noqa: S608


def _times(runtime: Runtime, what: str, last: int) -> list[tuple[float, float]]:
    """When each of the runs since the last one before was launched and when it ended, of those that have ended.

    Ends the benchmark where one failed.
    """
    statement = (
        "select run.status, extract(epoch from launch.timestamp)::float8, run.end_time"
        " from dagster.runs as run join dagster.event_logs as launch"
        " on launch.run_id = run.run_id and launch.dagster_event_type = 'PIPELINE_STARTING'"
        " where run.id > :last and run.pipeline_name = :job and run.status in ('SUCCESS', 'FAILURE', 'CANCELED')"
    )
    with runtime.database.operator() as connection:
        rows = connection.execute(sa.text(statement), {"last": last, "job": CODE[what][2]}).all()
    if failed := [status for status, _, _ in rows if status != "SUCCESS"]:
        raise SystemExit(f"{len(failed)} runs did not succeed.")
    return [(launch, end) for _, launch, end in rows]


def _require_unchanged(runtime: Runtime, ids: Sequence[str]) -> None:
    """Ends the benchmark where the last run of one is not what was to be measured."""
    for organization_id in ids:
        with runtime.database.organization(organization_id) as connection:
            run = connection.execute(
                sa.text("select status, requests, assets from cliniko.sync_runs order by started_at desc limit 1")
            ).one()
        changed = sum(asset[key] for asset in run.assets.values() for key in ("inserted", "deleted"))
        changed += sum(run.assets[name]["updated"] for name in ("cliniko/patients", "cliniko/appointments"))
        if run.status != "succeeded" or changed or run.requests > 4:
            raise SystemExit(f"{organization_id}: {run.status}, {changed} rows changed, {run.requests} requests")


def _stored(runtime: Runtime) -> tuple[int, int]:
    """How many events Dagster has stored, and how many connections PostgreSQL has had."""
    return (
        _scalar(runtime, "select coalesce(max(id), 0) from dagster.event_logs"),
        _scalar(runtime, "select sessions from pg_stat_database where datname = current_database()"),
    )


def _scalar(runtime: Runtime, statement: str) -> int:
    with runtime.database.operator() as connection:
        return connection.execute(sa.text(statement)).scalar_one()


# What processes take.


def _spent(runtime: Runtime, services: Services, served: Served) -> dict[str, float]:
    """CPU seconds so far, by whose they are; `everything` are those of the whole machine."""
    found = {
        "daemon": sum(_cpu_of(services.daemon)),
        "simulated Cliniko": sum(_cpu_of(served.process)),
        "PostgreSQL": _cpu_of_server(runtime),
        "benchmark": time.process_time(),
    }
    for what, number in services.code_servers.items():
        found[f"code server of {what}"], found[f"runs of {what}"] = _cpu_of(number)
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text(encoding="ascii").split()[1:8])
    return found | {"everything": sum((user, nice, system, *interrupts)) / _TICKS_A_SECOND}


def _cpu_of(process: int) -> tuple[float, float]:
    """CPU seconds of a process that runs, and of those of its children that have ended."""
    _, _, fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")
    own_user, own_system, user, system = map(int, fields.split()[11:15])
    return (own_user + own_system) / _TICKS_A_SECOND, (user + system) / _TICKS_A_SECOND


def _cpu_of_server(runtime: Runtime) -> float:
    """CPU seconds of the embedded PostgreSQL: the server's, and those of all that it has started."""
    number = int((runtime.settings.home / "postgres" / "data" / "postmaster.pid").read_text("utf-8").split("\n", 1)[0])
    seconds = sum(_cpu_of(number))
    for child in _children(number):
        with suppress(OSError):
            seconds += sum(_cpu_of(child))
    return seconds


def _children(process: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for each in Path(f"/proc/{process}/task").iterdir():
            with suppress(OSError):  # a thread that has ended meanwhile
                found += map(int, (each / "children").read_text(encoding="ascii").split())
    return found


class Workers:
    """Looks at the processes of runs, which are a code server's children, until the end of the block."""

    def __init__(self, code_server: int) -> None:
        self.peaks: dict[int, float] = {}
        self._code_server = code_server
        self._others = set(_children(code_server))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="looks at processes")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def alive(self) -> list[int]:
        """The runs' processes that have not ended, or whose end the code server does not know yet."""
        return [each for each in _children(self._code_server) if each not in self._others and self._is_worker(each)]

    def _is_worker(self, process: int) -> bool:
        if process in self.peaks:
            return True
        with suppress(OSError):
            command = Path(f"/proc/{process}/cmdline").read_bytes()
            if b"resource_tracker" in command:  # Python's own, which goes on
                self._others.add(process)
            return b"spawn_main" in command
        return False

    def _look(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            for each in self.alive():
                if peak := _peak(each):
                    self.peaks[each] = max(peak, self.peaks.get(each, 0))


def _peak(process: int) -> float:
    """The process's highest resident memory so far, in MB; 0 where it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


# What runs beside the benchmark.


@contextmanager
def running_dagster(
    runtime: Runtime, environ: Mapping[str, str], changes: Mapping[str, Mapping[str, Any]]
) -> Generator[Services]:
    """The daemon and both code servers, on the shipped dagster.yaml with the changes; ready when both schedules are."""
    home = runtime.settings.dagster_home
    (home / "dagster.yaml").unlink()
    environment = {**environ, **instance_environment(runtime), "PYTHONWARNINGS": "ignore"}
    configuration = yaml.safe_load((home / "dagster.yaml").read_text(encoding="utf-8"))
    for section, change in changes.items():
        for name, value in change.items():
            was = configuration[section].get(name)
            configuration[section][name] = {**was, **value} if isinstance(was, dict) else value
    (home / "dagster.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    say("Dagster starts")
    began = datetime.now(UTC)
    with ExitStack() as stack:
        code_servers: dict[str, int] = {}
        workspace: list[dict[str, Any]] = []
        for what, (location, module, _, _) in CODE.items():
            port = _free_port()
            command = ["dagster", "api", "grpc", "--module-name", module, "--host", "127.0.0.1", "--port", str(port)]
            started = _started(home, what, [*command, "--location-name", location], environment)
            code_servers[what] = stack.enter_context(started)
            workspace.append({"grpc_server": {"host": "127.0.0.1", "port": port, "location_name": location}})
            _wait(lambda port=port: _listens(port), START_SECONDS, f"the code server of {module}")
        file = home / "workspace.yaml"
        file.write_text(yaml.safe_dump({"load_from": workspace}), encoding="utf-8")
        command = ["dagster._daemon", "run", "--workspace", str(file), "--log-level", "warning"]
        services = Services(home, stack.enter_context(_started(home, "daemon", command, environment)), code_servers)
        _wait(lambda: _ticking(runtime, began) == len(CODE), START_SECONDS, "the schedules' first ticks")
        yield services


@contextmanager
def _started(home: Path, name: str, arguments: Sequence[str], environ: Mapping[str, str]) -> Generator[int]:
    """A Python module in a process group of its own, which is ended as a whole."""
    log = home / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 (ours, no shell)
            [sys.executable, "-m", *arguments],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process.pid
        except SystemExit:
            CONSOLE.print(f"{name}: {log.read_text(errors='replace')[-2000:]}", style="dim", highlight=False)
            raise
        finally:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(END_SECONDS)


def _ticking(runtime: Runtime, began: datetime) -> int:
    """How many of the schedules have had a tick since."""
    statement = (
        "select count(distinct tick_body::jsonb ->> 'job_name') from dagster.job_ticks"
        " where status in ('SKIPPED', 'SUCCESS') and timestamp > :began"
        " and tick_body::jsonb ->> 'job_name' = any(:schedules)"
    )
    schedules = [schedule for _, _, _, schedule in CODE.values()]
    with runtime.database.operator() as connection:
        parameters = {"began": began.replace(tzinfo=None), "schedules": schedules}
        return connection.execute(sa.text(statement), parameters).scalar_one()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextmanager
def simulated_cliniko(appointments: int) -> Generator[Served]:
    """An account of so many appointments, served by a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, appointments), name="simulated Cliniko", daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours.recv()
    finally:
        process.kill()  # it has nothing to put in order
        process.join()
        ours.close()


def _serve(connection: Connection, appointments: int) -> None:
    """The simulated Cliniko's process; ends when nobody is there any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the benchmark, which ends it
    patients = max(1, appointments // APPOINTMENTS_OF_A_PATIENT)
    account = generated_account(patients, appointments, 1, datetime.now(UTC), GROUP_SHARE)
    ids = list(account.records["patients"])
    with running_sandbox([account]) as sandbox, suppress(EOFError):
        connection.send(Served(os.getpid(), sandbox.host, sandbox.base_url(account), account.api_key, ids))
        connection.recv()


# What is told.


def report(name: str, ours: Measurement, empty: Measurement, appointments: int) -> int:
    """Prints a table and whether what is promised holds; the exit code."""
    table = Table(title=f"{name}: {ours.runs} organizations of {appointments:,} appointments", title_justify="left")
    for heading in ("", "a sync that finds nothing changed", "an empty run", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")

    def row(heading: str, figure: Callable[[Measurement], float], pattern: str) -> float:
        of_ours, of_empty = figure(ours), figure(empty)
        ratio = of_ours / of_empty if of_empty else 0.0
        table.add_row(heading, pattern.format(of_ours), pattern.format(of_empty), f"{ratio:.2f}" if ratio else "")
        return ratio

    row("runs an hour", lambda one: one.an_hour, "{:,.0f}")
    row("seconds from launch to end, median", lambda one: median(one.run_seconds), "{:.1f}")
    cpu = row("CPU seconds of the run's process", lambda one: one.worker_cpu / one.runs, "{:.2f}")
    for whose in ours.cpu:
        row(f"  of {whose}, for each run", lambda one, whose=whose: one.cpu[whose] / one.runs, "{:.2f}")
    whole = row("CPU seconds in all", lambda one: (one.worker_cpu + sum(one.cpu.values())) / one.runs, "{:.2f}")
    memory = row("peak memory of the run's process, median", lambda one: median(one.peaks), "{:.0f} MB")
    row("  highest", lambda one: max(one.peaks), "{:.0f} MB")
    row("connections to PostgreSQL", lambda one: one.connections / one.runs, "{:.0f}")
    row("events that Dagster stores", lambda one: one.events / one.runs, "{:.0f}")
    row("CPU seconds of other programs, for each run", lambda one: one.foreign_cpu / one.runs, "{:.2f}")
    CONSOLE.print(table)
    CONSOLE.print(f"Runs an hour: {ours.an_hour:,.0f} (at least {LEAST_AN_HOUR:,})")
    CONSOLE.print(f"CPU: {cpu:.2f}, in all {whole:.2f}; memory: {memory:.2f} of an empty run's (at most {MOST_RATIO})")
    return 1 if ours.an_hour < LEAST_AN_HOUR or max(cpu, whole, memory) > MOST_RATIO else 0


def _versions(runtime: Runtime) -> str:
    with runtime.database.operator() as connection:
        return machine(connection.execute(sa.text("show server_version")).scalar_one(), "dagster", "psycopg")


def _wait_for_the_tick() -> None:
    """Until a little before the next minute."""
    time.sleep((60 - SECONDS_BEFORE_THE_TICK - time.time()) % 60)


def _wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"Waited {seconds} s for {what}.")
        time.sleep(1)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
