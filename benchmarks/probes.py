"""Benchmark of probes of organizations in which nothing has changed.

Each organization has its own API key, and stored records of which the mapping and the active patients are computed. Its
account in the simulated Cliniko answers that no record has changed. The probes run in the benchmark's own process, as
they do in the code server.
"""

import argparse
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

import sqlalchemy as sa

from benchmarks.fixtures.clinic_data import Clinic, replace_active_patients, replace_mapping
from benchmarks.fixtures.databases import execute, server_version
from benchmarks.fixtures.pipelines import add_organization, opened_pipeline
from benchmarks.fixtures.processes import cpu_seconds, server_cpu_seconds
from benchmarks.fixtures.sandboxes import SandboxProcess, sandbox_process
from benchmarks.reporting import Benchmark, BenchmarkError, Report, Target, progress, table
from cliniko_pipeline.probes import READ, Unchanged, probe_and_note
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline.sandbox.server import Sandbox

MAX_SECONDS_PER_1000 = 60.0
MAX_CPU_PER_1000 = 8.0
APPOINTMENTS_PER_PATIENT = 10
CLASSES = 10

BENCHMARK = Benchmark(
    measures="probes of 1,000 unchanged organizations, answered after 100 ms",
    duration="five minutes",
    targets=(
        f"at most {MAX_SECONDS_PER_1000:g} s for 1,000 organizations",
        f"at most {MAX_CPU_PER_1000:g} CPU seconds for 1,000 organizations",
    ),
    options={
        "--organizations": (1_000, "organizations to probe"),
        "--appointments": (500, "appointments of each organization"),
        "--latency": (100, "milliseconds until the simulated Cliniko responds"),
    },
)


def run(options: argparse.Namespace, report: Report) -> None:
    """Probe all organizations and report."""
    with (
        sandbox_process(1, 1, empty_accounts=options.organizations) as sandbox,
        opened_pipeline(sandbox.account.host, CLINIKO_REQUESTS_PER_MINUTE="200") as (runtime, _),
    ):
        ids = [f"clinic-{number:05}" for number in range(options.organizations)]
        _store(runtime, ids, sandbox, options.appointments)
        sandbox.apply(partial(_set_latency, options.latency))
        before = _cpu(runtime, sandbox)
        begin = time.perf_counter()
        verdicts = probe_and_note(runtime, ids, seconds=600)
        seconds = time.perf_counter() - begin
        cpu = [after - earlier for after, earlier in zip(_cpu(runtime, sandbox), before, strict=True)]
        others = {id_: verdict for id_, verdict in verdicts.items() if not isinstance(verdict, Unchanged)}
        if others:
            raise BenchmarkError(
                f"{len(others)} organizations have other verdicts, such as {next(iter(others.items()))}"
            )
        report.show_machine(server_version(runtime.database), "psycopg", "pycurl")
    headings = ("seconds", "CPU seconds", "of PostgreSQL", "of the simulated Cliniko")
    title = f"{len(ids):,} organizations of {options.appointments} appointments, answered after {options.latency} ms"
    report.show(table([(heading, "{:.1f}") for heading in headings], [(seconds, *cpu)], title, left=0))
    thousands = len(ids) / 1000
    report.show_verdicts(
        [
            Target("Seconds for 1,000 organizations", seconds / thousands, MAX_SECONDS_PER_1000),
            Target("CPU seconds for 1,000 organizations", cpu[0] / thousands, MAX_CPU_PER_1000),
        ]
    )


def _store(runtime: Runtime, ids: Sequence[str], sandbox: SandboxProcess, appointments: int) -> None:
    """Store organizations as after a sync."""
    patients = max(1, appointments // APPOINTMENTS_PER_PATIENT)
    for number, organization_id in enumerate(ids):
        if number % 100 == 0:
            progress(f"Storing organizations: {number} of {len(ids)}")
        add_organization(runtime, organization_id, sandbox.account.empty_accounts[number], sandbox.account.api_url)
        now = datetime.now(UTC)
        clinic = Clinic(patients, appointments, CLASSES, organization_id, as_of=now)
        execute(runtime.database, *clinic.statements())
        with runtime.database.operator() as connection:
            connection.execute(
                sa.text(
                    "insert into cliniko.crawls"
                    " (organization_id, resource, started_at, completed_at, is_full, reconciles, cursor)"
                    " select :id, name, :now, :now, true, true, :now from unnest(cast(:names as text[])) as name"
                ),
                {"id": organization_id, "now": now, "names": [resource.name for resource in READ]},
            )
            connection.execute(
                sa.text(
                    "insert into cliniko.sync_runs (organization_id, run_id, planned, status, finished_at)"
                    " values (:id, 'run', '{}', 'succeeded', now())"
                ),
                {"id": organization_id},
            )
        replace_mapping(runtime.database, organization_id)
        replace_active_patients(runtime.database, organization_id, now)
    with runtime.database.operator() as connection:
        connection.execute(sa.text("analyze"))  # so that autovacuum does not do it during the measurement


def _set_latency(latency: int, sandbox: Sandbox, _account: Account) -> None:
    sandbox.faults = Faults(latency_ms=latency)


def _cpu(runtime: Runtime, sandbox: SandboxProcess) -> tuple[float, float, float]:
    """Return the CPU seconds so far of this process, of PostgreSQL and of the simulated Cliniko."""
    return time.process_time(), server_cpu_seconds(runtime.settings.home), sum(cpu_seconds(sandbox.process))
