"""Benchmark of scheduled syncs of many organizations that find no changes, compared with empty Dagster runs.

It needs 2 GB of disk under TMPDIR, and Redis (`make debian-redis`). `runs --organizations 8` is a quick try.
`--settings` also measures with other settings of Dagster. The machine runs Dagster's daemon, the code servers of the
pipeline and of `empty_runs`, PostgreSQL and the simulated Cliniko. All organizations receive a webhook event, so that
one tick of `webhook_syncs` requests all runs. Half of the empty runs are launched before the syncs, and half after.

The CPU seconds of a code server include those of its ended children, so the CPU seconds of all runs are measured. The
last table compares launchers: a process for each run, and a Celery worker with one and with two warm processes.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any
from uuid import uuid4

import dagster as dg
import sqlalchemy as sa

from benchmarks.fixtures import empty_runs
from benchmarks.fixtures.dagster_processes import (
    BROKER,
    CODE,
    EMPTY,
    OURS,
    START_SECONDS,
    WORKER,
    running_dagster,
    scalar,
)
from benchmarks.fixtures.databases import server_version
from benchmarks.fixtures.pipelines import add_organization, opened_pipeline
from benchmarks.fixtures.processes import cpu_seconds, machine_cpu_seconds, server_cpu_seconds, wait_until
from benchmarks.fixtures.run_processes import RunProcesses, WarmProcesses, warm_cpu_seconds
from benchmarks.fixtures.sandboxes import SandboxProcess, sandbox_process
from benchmarks.reporting import Benchmark, BenchmarkError, Report, Target, progress, table
from cliniko_pipeline.definitions import build_definitions
from cliniko_pipeline.orchestration.instance.home import open_instance
from cliniko_pipeline.orchestration.partitions import ensure_partitions
from cliniko_pipeline.orchestration.runs.in_process import run_sync
from cliniko_pipeline.postgres.operator_tables import webhooks
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline.sync_options import SyncOptions

APPOINTMENTS_PER_PATIENT = 10
GROUP_SHARE = 0.1

MIN_PER_HOUR = 1_000
MAX_RATIO = 2.0
WARM_PROCESSES = (1, 2)
MIN_WARM_RATIO = 2.5

BENCHMARK = Benchmark(
    measures="cost and rate of unchanged syncs of 200 organizations, requested by webhook events",
    duration="half an hour",
    targets=(
        f"at least {MIN_PER_HOUR:,} runs an hour",
        f"CPU seconds and memory: at most {MAX_RATIO:g} times an empty run's",
        f"warm Celery workers: at least {MIN_WARM_RATIO:g} times as many runs an hour",
    ),
    options={
        "--organizations": (200, "organizations to sync"),
        "--appointments": (1_000, "appointments of each organization"),
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
"""Changes to the shipped dagster.yaml, by their name in the tables."""

SECONDS_BEFORE_TICK = 8
END_SECONDS = 30
MAX_SECONDS = 3600


@dataclass(frozen=True)
class Measurement:
    """The measured runs of one or several ticks.

    Attributes:
        seconds: time from the launch of the first run to the end of the last run.
        run_seconds: time from the launch to the end of each run.
        peaks: peak of each run's process in MB.
        cpu: CPU seconds by owner. `OWN` stands for the processes of the runs, and `OTHERS` for unrelated programs.
        events: number of events that Dagster stored.
        connections: number of connections to PostgreSQL.
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
    def per_hour(self) -> float:
        """Runs an hour."""
        return self.runs / self.seconds * 3600

    @property
    def total_cpu(self) -> float:
        """CPU seconds of everything except unrelated programs."""
        return sum(self.cpu.values()) - self.cpu[OTHERS]


OWN, OTHERS = "CPU seconds of the run's process", "CPU seconds of other programs, for each run"


def run(options: argparse.Namespace, report: Report) -> None:
    """Measure with the shipped settings, and with other settings if asked, and report."""
    patients = max(1, options.appointments // APPOINTMENTS_PER_PATIENT)
    own_schedule = {"CLINIKO_SYNC_EVERY_MINUTES": "1440", "CLINIKO_FULL_SYNC_AT": "off"}
    with (
        sandbox_process(patients, options.appointments, GROUP_SHARE) as sandbox,
        opened_pipeline(sandbox.account.host, **own_schedule) as (runtime, environ),
    ):
        ids = [f"clinic-{number:04}" for number in range(1, options.organizations + 1)]
        _sync_first(runtime, ids, sandbox)
        launchers: dict[str, Measurement] = {}
        for name, changes in SETTINGS.items():
            if options.settings or not changes:
                ours, empty = _measure(runtime, environ, sandbox, ids, changes)
                launchers.setdefault("a process for each run", ours)
                report.show_machine(server_version(runtime.database), "dagster", "psycopg")
                _show(report, f"{name}: {len(ids)} organizations of {options.appointments:,} appointments", ours, empty)
        for number in WARM_PROCESSES:
            name = f"a Celery worker, {number} warm process{'es' if number > 1 else ''}"
            launchers[name] = _measure_warm(runtime, environ, sandbox, ids, number)
        _show_launchers(report, launchers)


def _show(report: Report, title: str, ours: Measurement, empty: Measurement) -> None:
    rows: list[tuple[str, str, str, str]] = []

    def add(heading: str, figure: Callable[[Measurement], float], pattern: str = "{:.2f}") -> float:
        of_ours, of_empty = figure(ours), figure(empty)
        ratio = of_ours / of_empty if of_empty else 0.0
        rows.append((heading, pattern.format(of_ours), pattern.format(of_empty), f"{ratio:.2f}" if ratio else ""))
        return ratio

    add("runs an hour", lambda measured: measured.per_hour, "{:,.0f}")
    add("seconds from launch to end, median", lambda measured: median(measured.run_seconds), "{:.1f}")
    ratios = {OWN: add(OWN, lambda measured: measured.cpu[OWN] / measured.runs)}
    for owner in ours.cpu:
        if owner not in (OWN, OTHERS):
            add(f"  of {owner}, for each run", lambda measured, owner=owner: measured.cpu[owner] / measured.runs)
    total, memory = "CPU seconds of all these", "peak memory of the run's process, median"
    ratios[total] = add(total, lambda measured: measured.total_cpu / measured.runs)
    ratios[memory] = add(memory, lambda measured: median(measured.peaks), "{:.0f} MB")
    add("  highest", lambda measured: max(measured.peaks), "{:.0f} MB")
    add("connections to PostgreSQL", lambda measured: measured.connections / measured.runs, "{:.0f}")
    add("events that Dagster stores", lambda measured: measured.events / measured.runs, "{:.0f}")
    add(OTHERS, lambda measured: measured.cpu[OTHERS] / measured.runs)
    headings = ("", "a sync that finds nothing changed", "an empty run", "ratio")
    report.show(table([(heading, "{}") for heading in headings], rows, title))
    report.show_verdicts(
        [
            Target("Runs an hour", ours.per_hour, MIN_PER_HOUR, at_least=True),
            *(Target(f"{heading}: ours / an empty run's", ratio, MAX_RATIO) for heading, ratio in ratios.items()),
        ]
    )


def _show_launchers(report: Report, launchers: Mapping[str, Measurement]) -> None:
    rows = [
        (
            name,
            measured.per_hour,
            median(measured.run_seconds),
            measured.cpu[OWN] / measured.runs,
            measured.total_cpu / measured.runs,
            max(measured.peaks),
        )
        for name, measured in launchers.items()
    ]
    columns = [
        ("launcher", "{}"),
        ("runs an hour", "{:,.0f}"),
        ("seconds from launch to end", "{:.1f}"),
        ("CPU seconds of the run's process", "{:.2f}"),
        ("CPU seconds in total", "{:.2f}"),
        ("highest peak", "{:.0f} MB"),
    ]
    report.show(table(columns, rows, "Unchanged syncs by launcher"))
    default, *warm = (measured.per_hour for measured in launchers.values())
    claim = "Runs an hour of warm Celery workers / of a process for each run"
    report.show_verdicts([Target(claim, max(warm) / default, MIN_WARM_RATIO, at_least=True)])


# Measuring.


def _sync_first(runtime: Runtime, ids: Sequence[str], sandbox: SandboxProcess) -> None:
    """Add the organizations, which share one account, and sync each in this process."""
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
    _note_requested(runtime, "now() + interval '10 days'")
    with runtime.database.operator() as connection:
        connection.execute(sa.text("analyze"))  # so that autovacuum does not do it during the measurement


def _measure(
    runtime: Runtime,
    environ: Mapping[str, str],
    sandbox: SandboxProcess,
    ids: Sequence[str],
    changes: Mapping[str, Mapping[str, Any]],
) -> tuple[Measurement, Measurement]:
    """Return the measurement of the pipeline's runs, and of the same number of empty runs."""
    with open_instance(runtime) as instance:
        ensure_partitions(instance, list(ids))
    half = list(ids[: len(ids) // 2])
    with running_dagster(runtime, environ, changes) as processes:
        processes["simulated Cliniko"] = sandbox.process
        before = _measure_tick(runtime, processes, EMPTY, half)
        ours = _measure_tick(runtime, processes, OURS, ids)
        _require_unchanged(runtime, ids)
        return ours, before + _measure_tick(runtime, processes, EMPTY, half)


def _measure_warm(
    runtime: Runtime, environ: Mapping[str, str], sandbox: SandboxProcess, ids: Sequence[str], number: int
) -> Measurement:
    """Return the measurement of the pipeline's runs on a Celery worker with this number of processes."""
    with running_dagster(runtime, environ, {}, warm_processes=number) as processes:
        processes["simulated Cliniko"] = sandbox.process
        measured = _measure_tick(runtime, processes, OURS, ids)
    _require_unchanged(runtime, ids)
    return measured


def _measure_tick(runtime: Runtime, processes: Mapping[str, int], code: str, ids: Sequence[str]) -> Measurement:
    """Make a tick request a run for each organization. Measure until the last run has ended."""
    time.sleep((60 - SECONDS_BEFORE_TICK - time.time()) % 60)
    progress(f"{len(ids)} runs: {code}")
    last = scalar(runtime, "select coalesce(max(id), 0) from dagster.runs")
    cpu_before, (events, connections) = _cpu(runtime, processes, code), _stored(runtime)
    workers = WarmProcesses(processes[WORKER]) if WORKER in processes else RunProcesses(processes[code])
    with workers:
        _request(runtime, code, ids)
        runs = f"select count(*) from dagster.runs where id > {last}"  # noqa: S608 (a number)
        wait_until(lambda: scalar(runtime, runs) > 0, START_SECONDS, "the tick's first run")
        wait_until(lambda: len(_times(runtime, code, last)) == len(ids), MAX_SECONDS, "the ends of the runs")
        # The code server collects its ended children twice a second.
        wait_until(workers.have_ended, END_SECONDS, "the ends of the processes")
    cpu = {name: seconds - cpu_before[name] for name, seconds in _cpu(runtime, processes, code).items()}
    events_after, connections_after = _stored(runtime)
    times = _times(runtime, code, last)
    if not workers.were_seen(len(ids)):
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
    """Make the next tick of a schedule or sensor request a run for each organization."""
    if code == EMPTY:
        (runtime.settings.dagster_home / empty_runs.DUE_FILE).write_text("\n".join(ids), encoding="utf-8")
        return
    # Webhook events request a run each within seconds, while the schedule waits for the next minute.
    _note_requested(runtime, "now() - interval '1 minute'")
    with runtime.database.operator() as connection:
        for organization_id in ids:
            webhooks.note_event(connection, organization_id, str(uuid4()), None)


def _note_requested(runtime: Runtime, requested_at: str) -> None:
    with runtime.database.operator() as connection:
        # A probe would find nothing to do, so make it forget what the active patients were computed from.
        connection.execute(sa.text("update cliniko.table_states set computed_from = null where as_of is not null"))
        connection.execute(sa.text(f"update cliniko.scheduling set requested_at = {requested_at}"))  # noqa: S608


def _times(runtime: Runtime, code: str, last: int) -> list[tuple[float, float]]:
    """Return the launch and end of each ended run with an id above `last`. Raise BenchmarkError if a run failed."""
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
    """Raise BenchmarkError if an organization's last sync changed rows or read more than the newest pages."""
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
    """Return the numbers of events stored by Dagster and of connections opened to PostgreSQL."""
    return (
        scalar(runtime, "select coalesce(max(id), 0) from dagster.event_logs"),
        scalar(runtime, "select sessions from pg_stat_database where datname = current_database()"),
    )


def _cpu(runtime: Runtime, processes: Mapping[str, int], code: str) -> dict[str, float]:
    """Return the CPU seconds so far by owner. The value of `OTHERS` is for the whole machine."""
    code_server, runs = cpu_seconds(processes[code])
    celery = {BROKER: sum(cpu_seconds(processes[BROKER]))} if BROKER in processes else {}
    return celery | {
        OWN: runs + (warm_cpu_seconds(processes[WORKER]) if WORKER in processes else 0),
        "daemon": sum(cpu_seconds(processes["daemon"])),
        "code server": code_server,
        "PostgreSQL": server_cpu_seconds(runtime.settings.home),
        "simulated Cliniko": sum(cpu_seconds(processes["simulated Cliniko"])),
        "benchmark": time.process_time(),
        "other code server": sum(sum(cpu_seconds(processes[other])) for other in CODE if other != code),
        OTHERS: machine_cpu_seconds(),
    }
