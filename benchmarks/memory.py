"""Benchmark of the peak memory of syncs, which must not grow with the size of the account.

It measures two accounts, the second ten times as large as the first. It needs 6 GB of memory, 5 GB of them for the
simulated Cliniko, and 3 GB of disk under TMPDIR. `memory 1000 10000` measures accounts of other sizes.

Each sync is a command `cliniko-pipeline sync`. Peaks (VmHWM) are read repeatedly for the command and for its worker
processes. ru_maxrss adds the last moments of the processes.
"""

import argparse
import os
import sysconfig
import time
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.fixtures.databases import server_version
from benchmarks.fixtures.pipelines import add_organization, opened_pipeline
from benchmarks.fixtures.processes import descendants, peak_memory, started
from benchmarks.fixtures.sandboxes import sandbox_process
from benchmarks.reporting import Benchmark, BenchmarkError, Report, Target, progress, table
from cliniko_pipeline.postgres.operator_tables.sync_runs import organization_status
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline.sandbox import wire
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.queries import read_query
from cliniko_pipeline.sandbox.resources import RESOURCES
from cliniko_pipeline.sandbox.server import Sandbox

APPOINTMENTS_PER_PATIENT = 10
GROUP_SHARE = 0.1
CHANGED_PAGE_INTERVAL = 10
"""Before the incremental sync, one appointment changes and one is deleted on every tenth page."""

MAX_GROWTH = 1.2
MAX_PEAK = 300

ORGANIZATION = "clinic"
POLL_SECONDS = 0.05

BENCHMARK = Benchmark(
    measures="peak memory of syncs of 100,000 and of 1,000,000 appointments",
    duration="ten minutes, 6 GB of memory",
    targets=(f"first sync of the large account: at most {MAX_GROWTH} times the small one's", f"at most {MAX_PEAK} MB"),
    options={"appointments": ((100_000, 1_000_000), "sizes of accounts")},
)


@dataclass(frozen=True)
class Measurement:
    """One sync of an account with `size` appointments. Peaks are in MB."""

    sync: str
    size: int
    requests: int
    seconds: float
    command_peak: float
    worker_peak: float


def run(options: argparse.Namespace, report: Report) -> None:
    """Measure all sizes and report."""
    measured: list[Measurement] = []
    version = ""
    for size in sorted(options.appointments):
        with sandbox_process(size // APPOINTMENTS_PER_PATIENT, size, GROUP_SHARE) as sandbox:
            account = sandbox.account
            with opened_pipeline(account.host) as (runtime, environ):
                version = server_version(runtime.database)
                add_organization(runtime, ORGANIZATION, account.api_key, account.api_url, account.patient_ids)
                measured.append(_measure(runtime, environ, "first", size))
                sandbox.apply(_change)
                measured.append(_measure(runtime, environ, "incremental", size))
                measured.append(_measure(runtime, environ, "full", size, "--full"))
    report.show_machine(version, "dagster", "psycopg")
    columns = [("sync", "{}"), ("appointments", "{:,}"), ("requests", "{:,}"), ("seconds", "{:.0f}")]
    columns += [("command's peak", "{:.0f} MB"), ("worker's peak", "{:.0f} MB")]
    report.show(table(columns, map(astuple, measured)))
    small, *_, large = [measurement for measurement in measured if measurement.sync == "first"] * 2
    growth = large.worker_peak / small.worker_peak
    highest = max(max(measurement.command_peak, measurement.worker_peak) for measurement in measured)
    claim = f"Peak of a first sync, {large.size:,} / {small.size:,} appointments"
    report.show_verdicts([Target(claim, growth, MAX_GROWTH), Target("Highest peak, MB", highest, MAX_PEAK)])


def _measure(runtime: Runtime, environ: dict[str, str], sync: str, size: int, *options: str) -> Measurement:
    progress(f"{size:,} appointments: {sync} sync")
    begin = time.monotonic()
    command_peak, worker_peak = _peaks(environ, runtime.settings.home / "sync.log", *options)
    seconds = time.monotonic() - begin
    with runtime.database.organization(ORGANIZATION) as connection:
        status = organization_status(connection)
    if status.status != "succeeded" or not status.active_patients:
        raise BenchmarkError(f"the sync has status {status.status} and {status.active_patients} active patients")
    return Measurement(sync, size, status.requests or 0, seconds, command_peak, worker_peak)


def _peaks(environ: dict[str, str], log: Path, *options: str) -> tuple[float, float]:
    """Run a sync. Return the peak of the command, and the highest peak of the processes that it started."""
    script = Path(sysconfig.get_path("scripts")) / "cliniko-pipeline"
    peaks: dict[int, float] = {}
    with started([script, "sync", ORGANIZATION, *options], environ, log) as process:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        while not ended:
            for measured in (process.pid, *descendants(process.pid)):
                peaks[measured] = max(peaks.get(measured, 0.0), peak_memory(measured))
            time.sleep(POLL_SECONDS)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise BenchmarkError(f"the sync ended with exit code {process.returncode}")
    command_peak = peaks.pop(process.pid)
    return command_peak, max(usage.ru_maxrss * 1024 / 1e6, *peaks.values())


def _change(_sandbox: Sandbox, account: Account) -> None:
    """Cancel one appointment and delete another on every tenth page of the list."""
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    name = "individual_appointments"
    number, total = 1, 1
    while (number - 1) * 100 < total:
        query = read_query(RESOURCES[name], {"page": str(number), "per_page": "100"}.items())
        page = account.page(name, query)
        if len(page.bodies) > 1:
            cancelled, deleted = map(wire.parse, page.bodies[:2])
            account.put(name, cancelled | {"cancelled_at": now, "updated_at": now})
            account.delete(name, deleted["id"])
        number, total = number + CHANGED_PAGE_INTERVAL, page.total_entries
