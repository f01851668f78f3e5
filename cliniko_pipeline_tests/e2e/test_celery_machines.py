"""Test of a backfill on two machines, of which one is killed, while the broker is restarted: `make test-celery`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.accounts.generated import generated_account
from cliniko_pipeline.sandbox.server import Sandbox
from cliniko_pipeline_tests.support.brokers import running_broker, send_runs_to_workers
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.hostile_accounts import contact
from cliniko_pipeline_tests.support.independent import expected_active_patients
from cliniko_pipeline_tests.support.machines import Machine, kill_tree, made_machine
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, opened_pipeline
from cliniko_pipeline_tests.support.processes import CommandLine, Running
from cliniko_pipeline_tests.support.servers import Server, embedded_programs, running_server
from cliniko_pipeline_tests.support.synced_organizations import wire_records
from cliniko_pipeline_tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("CLINIKO_TEST_MACHINES" not in os.environ, reason="this takes minutes: make test-celery"),
]

ORGANIZATIONS = 50
PATIENTS = 25
REQUESTS_PER_MINUTE = 20
"""A limit that two syncs of one organization almost reach, so that a repeated sync must share it with a killed one."""

RECOVERY_SECONDS = 900
"""Time limit for the recovery. A run that was killed before its start is given up after five minutes, and retried."""

RUNS = """
select organization.value, run.status, run.run_id, run.start_time, run.end_time, (
    select count(*) from dagster.event_logs as event
    where event.run_id = run.run_id and event.dagster_event_type = 'PIPELINE_START'
)
from dagster.runs as run
join dagster.run_tags as organization on organization.run_id = run.run_id and organization.key = 'dagster/partition'
order by run.id
"""
MACHINES = """
select distinct split_part(process, ' ', 1) || split_part(process, ' ', 2) from cliniko.run_heartbeats
where process is not null
"""


class Clinics:
    """Organizations with different accounts, each with a contact for every patient."""

    def __init__(self, pipeline: PipelineUnderTest, sandbox: Sandbox) -> None:
        self.pipeline = pipeline
        self.sandbox = sandbox
        self.contacts: dict[str, list[dict[str, Any]]] = {}
        now = datetime.now(UTC)
        for number in range(1, ORGANIZATIONS + 1):
            name = f"clinic-{number:02}"
            made = generated_account(PATIENTS, 3 * PATIENTS, number, now, group_share=0.1)
            records = {resource: list(found.values()) for resource, found in made.records.items()}
            account = Account.from_records(name, "au5", f"{name}-key-au5", records)
            sandbox.add(account)
            pipeline.add_organization(name, sandbox, account)
            self.contacts[name] = [
                contact(1000 * number + place, name, cliniko_patient_id=patient)
                for place, patient in enumerate(account.records["patients"])
            ]
            pipeline.add_contacts(self.contacts[name])

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with self.pipeline.database.operator() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(statement)]

    def synced(self) -> set[str]:
        return {name for name, status, *_ in self.rows(RUNS) if status == "SUCCESS"}

    def is_right(self, name: str) -> bool:
        """Compare the active patients with the independent computation, for the time of the organization's sync."""
        found = self.pipeline.active_patients(name)
        instants = {row["search_date_to"].replace(tzinfo=UTC) for row in found.values()}
        as_of = instants.pop() if instants else datetime.now(UTC)
        wire = wire_records(self.sandbox.accounts[name])
        return not instants and found == expected_active_patients(wire, self.contacts[name], name, as_of)


@contextmanager
def reachable_server() -> Iterator[Server]:
    with running_server(embedded_programs()) as server:
        server.write("pg_hba.conf", "local all all trust\nhost all all 127.0.0.1/32 trust")
        server.control("reload")
        yield server


@contextmanager
def started_worker(machine: Machine) -> Iterator[Running]:
    with machine.start("worker", "--concurrency", "2") as running:
        try:
            running.wait_for("[queues]", 120)
            yield running
        finally:
            if running.process.poll() is None:
                kill_tree(running.process.pid)


def test_backfill_on_two_machines_survives_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_broker(tmp_path / "redis") as broker, reachable_server() as server:
        # The schedule is daily, so a sync is repeated here only because it has failed.
        environ = environment(server.tcp_url, tmp_path / "home") | {
            "CLINIKO_SYNC_EVERY_MINUTES": "1440",
            "CLINIKO_FULL_SYNC_AT": "off",
            "CLINIKO_COMPARE_COUNTS_EVERY_HOURS": "0",
            "CLINIKO_REQUESTS_PER_MINUTE": str(REQUESTS_PER_MINUTE),
            "CLINIKO_REDIS_URL": broker.url,
        }
        send_runs_to_workers(tmp_path / "home" / "dagster")
        sandbox_port = int(environ["CLINIKO_ALLOWED_HOSTS"].rpartition(":")[2])
        ports = [server.port, broker.port, sandbox_port]
        with (
            opened_pipeline(environ) as pipeline,
            pipeline.sandbox([], requests_per_minute=REQUESTS_PER_MINUTE) as sandbox,
            made_machine(1, tmp_path / "first", environ, ports) as first,
            made_machine(2, tmp_path / "second", environ, ports) as second,
        ):
            schema.migrate(pipeline.database, create_application_tables=True)
            clinics = Clinics(pipeline, sandbox)
            command = CommandLine(environ, tmp_path)
            with started_worker(first) as killed, started_worker(second), command.started_ui():
                assert command("backfill", "--all", seconds=180).returncode == 0
                wait_until(lambda: len(clinics.synced()) >= ORGANIZATIONS // 5, "no tenth sync", 300)
                wait_until(lambda: len(clinics.rows(MACHINES)) == 2, "only one machine executes runs", 60)
                kill_tree(killed.process.pid)
                wait_until(lambda: len(clinics.synced()) >= ORGANIZATIONS // 2, "no half of the syncs", 300)
                broker.stop()
                broker.start()
                wait_until(
                    lambda: len(clinics.synced()) == ORGANIZATIONS, lambda: f"only {clinics.synced()}", RECOVERY_SECONDS
                )
            runs = clinics.rows(RUNS)
            assert [name for name in clinics.contacts if not clinics.is_right(name)] == []
    assert any(status == "FAILURE" for _, status, *_ in runs)
    assert max(started for *_, started in runs) == 1
    assert [name for name in clinics.contacts if runs_overlap(runs, name)] == []
    assert sandbox.counters.requests(status=429) == 0


def runs_overlap(runs: list[tuple[Any, ...]], organization_id: str) -> bool:
    times = sorted((start, end) for name, _, _, start, end, _ in runs if name == organization_id and start)
    return any(end > next_start for (_, end), (next_start, _) in pairwise(times))
