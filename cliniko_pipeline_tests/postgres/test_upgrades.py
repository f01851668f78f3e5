"""Tests of upgrades from the first version, for superusers and ordinary owners, without any loss."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from cliniko_pipeline.orchestration.plans.crawls import plan_crawl
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.schema.rehearsal import rehearse
from cliniko_pipeline.postgres.writing import crawls
from cliniko_pipeline.postgres.writing.crawls import RejectedRecord
from cliniko_pipeline_tests.support.clinics import AS_OF, small_clinic
from cliniko_pipeline_tests.support.databases import administer, owned_database
from cliniko_pipeline_tests.support.earlier_versions import SHARED_ROLE, migrate_as_first_version
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.pipelines import opened_pipeline
from cliniko_pipeline_tests.support.schemas import application_state, migrate_concurrently

ANN = UUID(int=1)
LONG_AGO = datetime(2025, 1, 1)  # noqa: DTZ001 as the table has it
# These rows are as a sync of the first version left them, with an active and an inactive patient.
SYNCED = f"""
set local app.organization_id = 'alpha';
insert into cliniko.patients (organization_id, id, first_name, created_at, updated_at)
values ('alpha', '1', 'Before', now(), now()), ('alpha', '2', 'Too', now(), now());
insert into cliniko.crawls (organization_id, resource, started_at, completed_at, records)
values ('alpha', 'patients', now(), now(), 2);
insert into cliniko.rejected_records (organization_id, resource, position, id, reason)
values ('alpha', 'patients', 1, '9', 'unreadable');
insert into cliniko.sync_runs (organization_id, run_id, planned, status) values ('alpha', 'one', '{{}}', 'succeeded');
insert into public.active_patients (organization_id, contact_id, recent_appointment_count,
    upcoming_appointment_count, total_appointment_count, created_at)
values ('alpha', '{UUID(int=2)}', 1, 0, 1, '{LONG_AGO}'), ('alpha', '{ANN}', 1, 0, 1, '{LONG_AGO}')
"""
STORED = {
    "cliniko.patients": "id, first_name",
    "cliniko.crawls": "resource, records",
    "cliniko.rejected_records": "id, reason",
    "cliniko.sync_runs": "run_id, status",
    "public.active_patients": "id, contact_id, created_at",
}


def stored(connection: Connection) -> list[object]:
    connection.exec_driver_sql("set local app.organization_id = 'alpha'")
    return [connection.exec_driver_sql(f"select {STORED[each]} from {each} order by 1").all() for each in STORED]


@pytest.fixture
def first_version(server: URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """Yield a database of the first version, whose owner is not a superuser."""
    with owned_database(server) as database:
        migrate_as_first_version(database, monkeypatch)
        yield database


@pytest.fixture
def reader(server: URL) -> Iterator[str]:
    name = f"reader_{uuid4().hex}"
    administer(server, f"create role {name}")
    yield name
    administer(server, f"drop role {name}")


def test_owner_upgrades_the_first_version(reader: str, first_version: Database, server: URL, tmp_path: Path) -> None:
    database, account = first_version, small_clinic("alpha")
    with (
        opened_pipeline(environment(database.url, tmp_path)) as pipeline,
        pipeline.sandbox([account]) as sandbox,
    ):
        pipeline.add_organization("alpha", sandbox, account)
        pipeline.add_contacts([{"id": ANN, "organization_id": "alpha", "cliniko_patient_id": "1", "name": "Ann"}])
        administer(
            database.url,
            "create table public.audit (x integer)",
            f"grant insert on public.audit to {SHARED_ROLE}",
            f"grant select on public.active_patients to {reader}",
            f"create policy application_reads on public.active_patients for select to {reader} using (true)",
        )
        with database.operator() as connection:
            connection.exec_driver_sql(SYNCED)
            before = stored(connection)
        application = application_state(database)

        migration = schema.migrate(database)
        assert (migration.changed, migration.before, migration.warnings) == (True, "0001", ())
        assert not schema.migrate(database).changed
        assert application_state(database) == application
        schema.require_current(database)
        schema.require_isolation(database)
        assert list(map(str, rehearse(database))) == []
        with database.operator() as connection:
            assert stored(connection) == before
        with database.organization("alpha") as connection:
            connection.exec_driver_sql("insert into public.audit values (1)")

        assert pipeline.sync("alpha", AS_OF).success
        (row,) = pipeline.rows("alpha", "public.active_patients")
        assert (row["id"], row["contact_id"], row["created_at"]) == (2, ANN, LONG_AGO)
        assert row["recent_appointments"][0]["id"] == "10"
        assert application_state(database) == application
        pipeline.database.close()
    visitor = Database(server.set(database=database.url.database))
    with visitor.operator() as connection:
        connection.exec_driver_sql(f"set local role {reader}")
        assert connection.exec_driver_sql("select count(*) from public.active_patients").scalar_one() == 1
    visitor.close()


def test_concurrent_upgrades_by_the_owner_are_one(first_version: Database) -> None:
    assert sorted(migrate_concurrently([first_version.url] * 2)) == [False, True]
    schema.require_current(first_version)
    schema.require_isolation(first_version)


def test_upgrade_of_the_first_version_keeps_its_data(empty_database_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next crawl of every resource is full. The database user is a superuser."""
    database = Database(empty_database_url)
    migrate_as_first_version(database, monkeypatch)
    with database.operator() as connection:
        connection.exec_driver_sql(SYNCED)
        before = stored(connection)

    assert schema.migrate(database).changed
    schema.require_current(database)
    schema.require_isolation(database)

    with database.organization("alpha") as connection:
        assert stored(connection) == before
        assert plan_crawl(crawls.read_states(connection)["patients"], full=False).is_full
        crawls.save_rejected(connection, "patients", accepted=["9"], rejected=[RejectedRecord("8", "unreadable")])
        rejected = connection.execute(sa.text("select id from cliniko.rejected_records order by position")).scalars()
        assert list(rejected) == ["8"]
        crawls.begin(connection, "patients", is_full=True, reconciles=True)
        crawls.complete(connection, "patients", next_cursor=datetime(2026, 6, 15, tzinfo=UTC))
        assert not plan_crawl(crawls.read_states(connection)["patients"], full=False).is_full
    database.close()
