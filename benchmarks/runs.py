"""Syncs that find nothing changed, launched by the schedule for many organizations, beside an empty Dagster project.

Takes 2 GB of disk under TMPDIR. `runs --organizations 8` is a quick try; `--settings` also measures with other settings
of Dagster's. Dagster's daemon, two code servers (the pipeline's and that of `empty_runs`), PostgreSQL and the simulated
Cliniko are processes on this machine. All organizations become due together, so that one tick of `cliniko_syncs`
requests a run for each. Half of the empty runs are launched before, half after.

A code server's CPU seconds include those of its ended children, so those of all runs are measured.
"""

import argparse
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

import dagster as dg
import sqlalchemy as sa

from benchmarks.fixtures import empty_runs
from benchmarks.fixtures.dagster_processes import CODE, EMPTY, OURS, START_SECONDS, running_dagster, scalar
from benchmarks.fixtures.databases import server_version
from benchmarks.fixtures.pipelines import add_organization, opened_pipeline
from benchmarks.fixtures.processes import (
    children,
    cpu_seconds,
    machine_cpu_seconds,
    peak_memory,
    server_cpu_seconds,
    wait_until,
)
from benchmarks.fixtures.sandboxes import SandboxProcess, sandbox_process
from benchmarks.reporting import Benchmark, BenchmarkError, Report, Target, progress, table
from cliniko_pipeline.definitions import build_definitions
from cliniko_pipeline.orchestration.instance.home import open_instance
from cliniko_pipeline.orchestration.partitions import ensure_partitions
from cliniko_pipeline.orchestration.runs.in_process import run_sync
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline.sync_options import SyncOptions

APPOINTMENTS_PER_PATIENT = 10
GROUP_SHARE = 0.1

MIN_PER_HOUR = 1_000
MAX_RATIO = 2.0

BENCHMARK = Benchmark(
    measures="cost and rate of unchanged syncs of 200 organizations, launched by the schedule",
    duration="half an hour",
    targets=(
        f"at least {MIN_PER_HOUR:,} runs an hour",
        f"CPU seconds and memory: at most {MAX_RATIO:g} times an empty run's",
    ),
    options={
        "--organizations": (200, "organizations to sync"),
        "--appointments": (1_000, "of each organization"),
        "--settings": (False, "also measure with other settings of Dagster's"),
    },
)

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "as shipped": {},
    "max_concurrent_runs: 2": {"concurrency": {"runs": {"max_concurrent_runs": 2}}},
    "max_concurrent_runs: 8": {"concurrency": {"runs": {"max_concurrent_runs": 8}}},
    "dequeue_interval_seconds: 5": {"run_queue": {"dequeue_interval_seconds": 5}},
    "dequeue_use_threads: true": {"run_queue": {"dequeue_use_threads": True, "dequeue_num_workers": 4}},
}
"""Changes of the shipped dagster.yaml, by their name in tables."""

POLL_SECONDS = 0.2
SECONDS_BEFORE_TICK = 8
END_SECONDS = 30
MAX_SECONDS = 3600


@dataclass(frozen=True)
class Measurement:
    """The runs that one tick requested, or several ticks.

    Attributes:
        seconds: from the launch of the first run to the end of the last.
        run_seconds: of each run, from its launch to its end.
        peaks: MB, of each run's own process.
        cpu: CPU seconds, by their owner; `OWN` are the runs' own processes, `OTHERS` programs beside the benchmark.
        events, connections: events that Dagster stored, and connections to PostgreSQL.
    """

    runs: int
    seconds: float
    run_seconds: Sequence[float]
    peaks: Sequence[float]
    cpu: Mapping[str, float]
    events: int
    connections: int

    def __add__(self, other: "Measurement") -> "Measurement":
        return Measurement(
            self.runs + other.runs,
            self.seconds + other.seconds,
            [*self.run_seconds, *other.run_seconds],
            [*self.peaks, *other.peaks],
            {name: self.cpu[name] + other.cpu[name] for name in self.cpu},
            self.events + other.events,
            self.connections + other.connections,
        )

    @property
    def total_cpu(self) -> float:
        """CPU seconds of everything but programs beside the benchmark."""
        return sum(self.cpu.values()) - self.cpu[OTHERS]


OWN, OTHERS = "CPU seconds of the run's process", "CPU seconds of other programs, for each run"


def run(options: argparse.Namespace, report: Report) -> None:
    """Measure with the shipped settings, or with several, and report each."""
    patients = max(1, options.appointments // APPOINTMENTS_PER_PATIENT)
    own_schedule = {"CLINIKO_SYNC_EVERY_MINUTES": "1440", "CLINIKO_FULL_SYNC_AT": "off"}
    with (
        sandbox_process(patients, options.appointments, GROUP_SHARE) as sandbox,
        opened_pipeline(sandbox.account.host, **own_schedule) as (runtime, environ),
    ):
        ids = [f"clinic-{number:04}" for number in range(1, options.organizations + 1)]
        _sync_first(runtime, ids, sandbox)
        for name, changes in SETTINGS.items():
            if options.settings or not changes:
                ours, empty = _measure(runtime, environ, sandbox, ids, changes)
                report.show_machine(server_version(runtime.database), "dagster", "psycopg")
                _show(report, f"{name}: {len(ids)} organizations of {options.appointments:,} appointments", ours, empty)


def _show(report: Report, title: str, ours: Measurement, empty: Measurement) -> None:
    rows: list[tuple[str, str, str, str]] = []

    def add(heading: str, figure: Callable[[Measurement], float], pattern: str = "{:.2f}") -> float:
        of_ours, of_empty = figure(ours), figure(empty)
        ratio = of_ours / of_empty if of_empty else 0.0
        rows.append((heading, pattern.format(of_ours), pattern.format(of_empty), f"{ratio:.2f}" if ratio else ""))
        return ratio

    def per_hour(one: Measurement) -> float:
        return one.runs / one.seconds * 3600

    add("runs an hour", per_hour, "{:,.0f}")
    add("seconds from launch to end, median", lambda one: median(one.run_seconds), "{:.1f}")
    ratios = {OWN: add(OWN, lambda one: one.cpu[OWN] / one.runs)}
    for owner in ours.cpu:
        if owner not in (OWN, OTHERS):
            add(f"  of {owner}, for each run", lambda one, owner=owner: one.cpu[owner] / one.runs)
    total, memory = "CPU seconds of all these", "peak memory of the run's process, median"
    ratios[total] = add(total, lambda one: one.total_cpu / one.runs)
    ratios[memory] = add(memory, lambda one: median(one.peaks), "{:.0f} MB")
    add("  highest", lambda one: max(one.peaks), "{:.0f} MB")
    add("connections to PostgreSQL", lambda one: one.connections / one.runs, "{:.0f}")
    add("events that Dagster stores", lambda one: one.events / one.runs, "{:.0f}")
    add(OTHERS, lambda one: one.cpu[OTHERS] / one.runs)
    headings = ("", "a sync that finds nothing changed", "an empty run", "ratio")
    report.show(table([(heading, "{}") for heading in headings], rows, title))
    report.show_verdicts(
        [
            Target("Runs an hour", per_hour(ours), MIN_PER_HOUR, at_least=True),
            *(Target(f"{heading}: ours / an empty run's", ratio, MAX_RATIO) for heading, ratio in ratios.items()),
        ]
    )


# Measuring.


def _sync_first(runtime: Runtime, ids: Sequence[str], sandbox: SandboxProcess) -> None:
    """Add the organizations, all with the same account, and sync each in this process."""
    account = sandbox.account
    definitions = build_definitions(runtime=runtime)
    with dg.DagsterInstance.ephemeral() as instance:  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
        ensure_partitions(instance, list(ids))
        for number, organization_id in enumerate(ids):
            if number % 50 == 0:
                progress(f"First syncs: {number} of {len(ids)}")
            add_organization(runtime, organization_id, account.api_key, account.api_url, account.patient_ids)
            error = run_sync(definitions, instance, runtime, organization_id, SyncOptions()).error
            if error is not None:
                raise BenchmarkError(f"the first sync of {organization_id} failed: {error}")
    _set_due(runtime, due=False)
    with runtime.database.operator() as connection:
        connection.execute(sa.text("analyze"))  # as the server does by itself, a minute later


def _measure(
    runtime: Runtime,
    environ: Mapping[str, str],
    sandbox: SandboxProcess,
    ids: Sequence[str],
    changes: Mapping[str, Mapping[str, Any]],
) -> tuple[Measurement, Measurement]:
    """Return the measurement of our runs, and that of as many empty ones."""
    with open_instance(runtime) as instance:
        ensure_partitions(instance, list(ids))
    half = list(ids[: len(ids) // 2])
    with running_dagster(runtime, environ, changes) as processes:
        processes["simulated Cliniko"] = sandbox.process
        before = _measure_tick(runtime, processes, EMPTY, half)
        ours = _measure_tick(runtime, processes, OURS, ids)
        _require_unchanged(runtime, ids)
        return ours, before + _measure_tick(runtime, processes, EMPTY, half)


def _measure_tick(runtime: Runtime, processes: Mapping[str, int], code: str, ids: Sequence[str]) -> Measurement:
    """Have a tick request a run for each organization; measure until the last has ended."""
    time.sleep((60 - SECONDS_BEFORE_TICK - time.time()) % 60)
    progress(f"{len(ids)} runs: {code}")
    last = scalar(runtime, "select coalesce(max(id), 0) from dagster.runs")
    cpu_before, (events, connections) = _cpu(runtime, processes, code), _stored(runtime)
    with _Workers(processes[code]) as workers:
        _request(runtime, code, ids)
        runs = f"select count(*) from dagster.runs where id > {last}"  # noqa: S608 (a number)
        wait_until(lambda: scalar(runtime, runs) > 0, START_SECONDS, "the tick's first run")
        wait_until(lambda: len(_times(runtime, code, last)) == len(ids), MAX_SECONDS, "the ends of the runs")
        # The code server collects its ended children twice a second.
        wait_until(lambda: not workers.alive(), END_SECONDS, "the ends of the processes")
    cpu = {name: seconds - cpu_before[name] for name, seconds in _cpu(runtime, processes, code).items()}
    events_after, connections_after = _stored(runtime)
    times = _times(runtime, code, last)
    if len(workers.peaks) < len(ids):
        raise BenchmarkError(f"only {len(workers.peaks)} processes of {len(ids)} runs were seen")
    cpu[OTHERS] -= sum(seconds for name, seconds in cpu.items() if name != OTHERS)
    del cpu["benchmark"], cpu["other code server"]
    return Measurement(
        runs=len(ids),
        seconds=max(end for _, end in times) - min(launch for launch, _ in times),
        run_seconds=[end - launch for launch, end in times],
        peaks=list(workers.peaks.values()),
        cpu=cpu,
        events=events_after - events,
        connections=connections_after - connections,
    )


def _request(runtime: Runtime, code: str, ids: Sequence[str]) -> None:
    """Make the next tick request a run for each organization, and later ticks none."""
    if code == EMPTY:
        (runtime.settings.dagster_home / empty_runs.DUE_FILE).write_text("\n".join(ids), encoding="utf-8")
        return
    _set_due(runtime, due=True)
    due = "select count(*) from cliniko.scheduling where requested_at is null"
    wait_until(lambda: not scalar(runtime, due), START_SECONDS, "the tick")
    _set_due(runtime, due=False)


def _set_due(runtime: Runtime, *, due: bool) -> None:
    requested_at = "null" if due else "now() + interval '10 days'"
    with runtime.database.operator() as connection:
        connection.execute(sa.text(f"update cliniko.scheduling set requested_at = {requested_at}"))  # noqa: S608


def _times(runtime: Runtime, code: str, last: int) -> list[tuple[float, float]]:
    """Return the launch and the end of each ended run with an id above `last`. Raise an error where one failed."""
    statement = (
        "select run.status, extract(epoch from launch.timestamp)::float8, run.end_time"
        " from dagster.runs as run join dagster.event_logs as launch"
        " on launch.run_id = run.run_id and launch.dagster_event_type = 'PIPELINE_STARTING'"
        " where run.id > :last and run.pipeline_name = :job and run.status in ('SUCCESS', 'FAILURE', 'CANCELED')"
    )
    with runtime.database.operator() as connection:
        rows = connection.execute(sa.text(statement), {"last": last, "job": CODE[code][2]}).all()
    if failed := [status for status, _, _ in rows if status != "SUCCESS"]:
        raise BenchmarkError(f"{len(failed)} runs did not succeed")
    return [(launch, end) for _, launch, end in rows]


def _require_unchanged(runtime: Runtime, ids: Sequence[str]) -> None:
    """Raise an error where the last sync of an organization changed rows or read more than the newest pages."""
    for organization_id in ids:
        with runtime.database.organization(organization_id) as connection:
            run = connection.execute(
                sa.text("select status, requests, assets from cliniko.sync_runs order by started_at desc limit 1")
            ).one()
        changed = sum(asset[key] for asset in run.assets.values() for key in ("inserted", "deleted"))
        changed += sum(run.assets[name]["updated"] for name in ("cliniko/patients", "cliniko/appointments"))
        if run.status != "succeeded" or changed or run.requests > 4:
            raise BenchmarkError(f"{organization_id}: {run.status}, {changed} rows changed, {run.requests} requests")


def _stored(runtime: Runtime) -> tuple[int, int]:
    """Return the events that Dagster has stored, and the connections that PostgreSQL has had."""
    return (
        scalar(runtime, "select coalesce(max(id), 0) from dagster.event_logs"),
        scalar(runtime, "select sessions from pg_stat_database where datname = current_database()"),
    )


def _cpu(runtime: Runtime, processes: Mapping[str, int], code: str) -> dict[str, float]:
    """Return the CPU seconds so far by their owner; those of `OTHERS` are the whole machine's."""
    code_server, runs = cpu_seconds(processes[code])
    return {
        OWN: runs,
        "daemon": sum(cpu_seconds(processes["daemon"])),
        "code server": code_server,
        "PostgreSQL": server_cpu_seconds(runtime.settings.home),
        "simulated Cliniko": sum(cpu_seconds(processes["simulated Cliniko"])),
        "benchmark": time.process_time(),
        "other code server": sum(sum(cpu_seconds(processes[other])) for other in CODE if other != code),
        OTHERS: machine_cpu_seconds(),
    }


class _Workers:
    """Measures the peaks of runs' processes, which are a code server's children, until the end of the block."""

    def __init__(self, code_server: int) -> None:
        self.peaks: dict[int, float] = {}
        self._code_server = code_server
        self._others = set(children(code_server))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="peaks of runs")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def alive(self) -> list[int]:
        """Return the runs' processes that the code server still has."""
        return [one for one in children(self._code_server) if one not in self._others and self._is_worker(one)]

    def _is_worker(self, process: int) -> bool:
        if process in self.peaks:
            return True
        with suppress(OSError):
            command = Path(f"/proc/{process}/cmdline").read_bytes()
            if b"resource_tracker" in command:  # Python's own, which does not end
                self._others.add(process)
            return b"spawn_main" in command
        return False

    def _poll(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            for process in self.alive():
                if peak := peak_memory(process):
                    self.peaks[process] = max(peak, self.peaks.get(process, 0))
