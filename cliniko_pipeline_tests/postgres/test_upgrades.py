"""From the schema of an earlier version, with its data, to this version's."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy.engine import URL

from cliniko_pipeline.orchestration.crawl_plans import plan_crawl
from cliniko_pipeline.postgres import crawls, schema
from cliniko_pipeline.postgres.crawls import RejectedRecord
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.tables import TENANT_TABLES

CLINIC = "clinic"
BEFORE_INCREMENTAL_CRAWLS = "0001"
LATER = ("crawled_ids", "table_states", 'current_attendances"')


@pytest.fixture
def of_the_first_version(empty_database_url: URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    database = Database(empty_database_url)
    upgrade = command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(schema.command, "upgrade", lambda config, _: upgrade(config, BEFORE_INCREMENTAL_CRAWLS))
        patch.setattr(schema, "TENANT_TABLES", tuple(each for each in TENANT_TABLES if not each.endswith(LATER)))
        patch.setattr(schema, "WATCHED", ())
        patch.setattr(schema, "FUNCTIONS", tuple(each for each in schema.FUNCTIONS if each != "take_requests"))
        patch.setattr(schema, "expected_version", lambda: BEFORE_INCREMENTAL_CRAWLS)
        schema.migrate(database, create_application_tables=True)
    yield database
    database.close()


def test_what_the_first_version_stored_stays_and_the_next_sync_is_a_full_one(of_the_first_version: Database) -> None:
    database = of_the_first_version
    with database.organization(CLINIC) as connection:
        connection.exec_driver_sql(
            f"""
            insert into cliniko.patients (organization_id, id, created_at, updated_at)
            values ('{CLINIC}', '1', now(), now());
            insert into cliniko.crawls (organization_id, resource, started_at, completed_at, records)
            values ('{CLINIC}', 'patients', now(), now(), 1), ('{CLINIC}', 'attendees', now(), null, 0);
            insert into cliniko.rejected_records (organization_id, resource, position, id, reason)
            values ('{CLINIC}', 'patients', 1, '7', 'unreadable'), ('{CLINIC}', 'patients', 2, null, 'unreadable')
            """
        )

    assert schema.migrate(database).changed
    schema.require_current(database)
    schema.require_isolation(database)

    with database.organization(CLINIC) as connection:
        patients = connection.execute(sa.text("select id, vanished_at from cliniko.patients")).all()
        assert [tuple(row) for row in patients] == [("1", None)]
        states = crawls.states(connection)
        assert plan_crawl(states["patients"], full=False).is_full
        assert plan_crawl(states["attendees"], full=False).is_full
        crawls.set_aside(connection, "patients", understood=["7"], rejected=[RejectedRecord("8", "unreadable")])
        rejected = connection.execute(sa.text("select id from cliniko.rejected_records order by position")).scalars()
        assert list(rejected) == [None, "8"]
        crawls.begin(connection, "patients", is_full=True, reconciles=True)
        crawls.complete(connection, "patients", horizon=datetime(2026, 6, 15, tzinfo=UTC))
        assert not plan_crawl(crawls.states(connection)["patients"], full=False).is_full
