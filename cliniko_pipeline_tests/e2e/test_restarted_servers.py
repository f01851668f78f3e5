"""Tests of syncs during a restart or crash of the database server, and of a standby."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseUnavailableError
from cliniko_pipeline.orchestration.instance.home import STORAGE_SCHEMA
from cliniko_pipeline.orchestration.pooled_storage import storage_url
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline_tests.support.databases import created_database
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.hostile_accounts import contact, individual_appointment, patient
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, opened_pipeline
from cliniko_pipeline_tests.support.processes import CommandLine, assert_refused
from cliniko_pipeline_tests.support.servers import Server, chosen_programs, embedded_programs, running_server
from cliniko_pipeline_tests.support.synced_organizations import SyncedOrganization, synced_demo
from cliniko_pipeline_tests.support.waiting import wait_until

WRITTEN = ("cliniko.patients", "cliniko.appointments", "cliniko.contact_mapping", "public.active_patients")
"""The tables of a sync in the order in which it writes them."""


LOST = (
    "the server shut down or ended the connection",
    "a connection in use was lost",
    "holds the lock of organization",
)
Mode = Literal["fast", "immediate"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server(chosen_programs() or embedded_programs()) as server:
        yield server


@pytest.fixture
def migrated_url(server: Server) -> Iterator[URL]:
    with created_database(server.url) as url:
        database = Database(url)
        schema.migrate(database, create_application_tables=True)
        database.close()
        yield url


@contextmanager
def restart_at_write(server: Server, url: URL, table: str, mode: Mode) -> Iterator[None]:
    """Hold a lock on the table, and restart the server when a sync waits for this lock."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    is_over = threading.Event()

    def restart_when_waited_for(connection: sa.Connection) -> None:
        waiting = "select count(*) from pg_stat_activity where cardinality(pg_blocking_pids(pid)) > 0"
        wait_until(lambda: is_over.is_set() or connection.exec_driver_sql(waiting).scalar_one())
        if not is_over.is_set():
            restarted.append(table)
            server.restart(mode)

    restarted: list[str] = []
    with engine.connect() as holder, engine.connect() as observer:
        holder.exec_driver_sql("begin")
        holder.exec_driver_sql(f"lock table {table} in share row exclusive mode")
        thread = threading.Thread(target=restart_when_waited_for, args=(observer,))
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
            holder.invalidate()
            observer.invalidate()
    engine.dispose()
    assert restarted == [table]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_sync_during_a_restart_leaves_nothing_half_written(
    server: Server, migrated_url: URL, tmp_path: Path, mode: Mode
) -> None:
    """This holds for every table. The next sync gives exact results, and no run seems to continue forever."""
    environ = environment(migrated_url, tmp_path)
    command = CommandLine(environ, tmp_path)
    with opened_pipeline(environ) as pipeline, synced_demo(pipeline) as clinic:
        for number, table in enumerate(WRITTEN):
            before = pipeline.rows(clinic.id, "public.active_patients")
            change(clinic, number)
            sync = ("sync", clinic.id, "--as-of", clinic.clock.now.isoformat())
            with restart_at_write(server, migrated_url, table, mode):
                interrupted = command(*sync)
            assert interrupted.returncode == 1
            assert any(words in interrupted.stderr for words in LOST), interrupted.stderr
            assert "Traceback" not in interrupted.stderr
            assert pipeline.rows(clinic.id, "public.active_patients") == before
            done = command(*sync, *(["--full"] if number % 2 else []))
            assert done.returncode == 0, done.stderr
            clinic.as_of = clinic.clock.now
            clinic.assert_right()
        runs = pipeline.rows(clinic.id, "cliniko.sync_runs")
        assert sorted(run["status"] for run in runs) == ["failed"] * 4 + ["succeeded"] * 4
        assert count(pipeline, "dagster.runs where status not in ('FAILURE', 'SUCCESS')") == 0


def change(clinic: SyncedOrganization, number: int) -> None:
    """Add a patient with an appointment and a contact, and let time pass, so that the sync writes each table."""
    clinic.clock.advance(minutes=10)
    name = f"99000{number}"
    email = f"{name}@example.org"
    clinic.put("patients", patient(name, "New", name, email))
    clinic.put("individual_appointments", individual_appointment(f"98000{number}", name, "2026-06-14T10:00:00Z"))
    found = contact(90_000 + number, clinic.id, email=email, name="Somebody")
    clinic.pipeline.add_contacts([found])
    clinic.contacts.append(found)


def count(pipeline: PipelineUnderTest, rows: str) -> int:
    with pipeline.database.operator() as connection:
        return connection.exec_driver_sql(f"select count(*) from {rows}").scalar_one()


@pytest.mark.slow
def test_standby_is_named_by_every_command(server: Server, migrated_url: URL, tmp_path: Path) -> None:
    """The driver of Dagster's storage reports the standby too."""
    words = "leads to a read-only standby", "point it at the primary server"
    with server.standby() as standby:
        url = standby.url.set(database=migrated_url.database)
        command = CommandLine(environment(url, tmp_path), tmp_path)
        for arguments in (["migrate"], ["sync", "--all"], ["status"], ["organizations", "list"], ["ui"]):
            assert_refused(command(*arguments), *words)
        examined = command("doctor")
        assert examined.returncode == 1
        assert all(word in examined.stdout for word in words)
        assert "Cliniko accepts" not in examined.stdout
        with pytest.raises(DatabaseUnavailableError, match=words[0]):
            sa.create_engine(storage_url(url, STORAGE_SCHEMA)).connect()
