"""Tests of migrations of an empty database or of the application's tables, also concurrently."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import time
from pathlib import Path
from uuid import UUID, uuid4

import pandas as pd
import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError, DatabaseUnavailableError
from cliniko_pipeline.postgres import engine
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.operator_tables import scheduling
from cliniko_pipeline.postgres.operator_tables.alerts import open_alerts
from cliniko_pipeline.postgres.operator_tables.check_results import failed_checks
from cliniko_pipeline.postgres.schema import isolation
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.server.embedded import EmbeddedServer
from cliniko_pipeline.postgres.tables import TENANT_TABLES
from cliniko_pipeline.postgres.writing import frames
from cliniko_pipeline_tests.support.databases import administer, organization_role_of
from cliniko_pipeline_tests.support.schemas import (
    ACTIVE_PATIENTS_TABLE,
    assert_one_line,
    migrate_concurrently,
    schema_objects,
)

COUNTS = "recent_appointment_count, upcoming_appointment_count, total_appointment_count"


@pytest.fixture
def empty(empty_database_url: URL) -> Iterator[Database]:
    database = Database(empty_database_url)
    yield database
    database.close()


@pytest.fixture
def application(empty: Database) -> Database:
    """Return a database that has only the application's tables."""
    administer(empty.url, sql("schema/application_tables"))
    return empty


def test_migration_of_an_empty_database_is_done_once(empty: Database) -> None:
    with pytest.raises(DatabaseSetupError, match=r"public\.organizations is missing"):
        schema.migrate(empty)
    assert schema_objects(empty) == []
    first = schema.migrate(empty, create_application_tables=True)
    objects = schema_objects(empty)
    second = schema.migrate(empty, create_application_tables=True)
    assert (first.before, first.after, first.changed) == (None, schema.expected_version(), True)
    assert (second.before, second.after, second.changed) == (first.after, first.after, False)
    assert schema_objects(empty) == objects
    schema.require_current(empty)
    administer(empty.url, "drop schema cliniko cascade")
    assert schema.migrate(empty).changed
    schema.require_current(empty)


def test_concurrent_migrations_of_one_database_change_it_once(application: Database) -> None:
    assert sorted(migrate_concurrently([application.url] * 5)) == [False] * 4 + [True]


def test_concurrent_first_migrations_of_a_server(tmp_path: Path) -> None:
    """Each migration creates the organization role of its database."""
    with EmbeddedServer(tmp_path / "server") as server:
        urls = [server.url.set(database=f"several_{number}") for number in range(3)]
        administer(server.url, *(f"create database {url.database}" for url in urls))
        for url in urls:
            administer(url, sql("schema/application_tables"))
        assert migrate_concurrently(urls) == [True] * 3


# The application's active_patients. ---------------------------------------------------------------------------------


def test_migration_keeps_active_patients_without_duplicates(application: Database) -> None:
    one, two = UUID(int=1), UUID(int=2)
    rows = [(one, "a"), (two, "a"), (two, "a"), (two, "b"), (one, None), (one, None), (two, "a")]
    administer(application.url, ACTIVE_PATIENTS_TABLE)
    insertion = sa.text(
        f"insert into public.active_patients (contact_id, organization_id, {COUNTS}) values (:c, :o, :n, 0, :n)"
    )
    with application.operator() as connection:
        connection.execute(insertion, [{"c": row[0], "o": row[1], "n": n} for n, row in enumerate(rows, 1)])
    schema.migrate(application)
    query = "select id, recent_appointment_count from public.active_patients order by id"
    with application.operator() as connection:
        kept = connection.execute(sa.text(query)).all()
    assert kept == [(number, number) for number in (1, 2, 4, 5, 6)]
    with application.organization("a") as connection:
        assert connection.execute(sa.text(query)).all() == [(1, 1), (2, 2)]
        connection.execute(insertion, {"c": uuid4(), "o": "a", "n": 0})


def test_migration_says_that_active_patients_is_closed_now(application: Database) -> None:
    """If the table had rows and no policies, its readers must set an organization from now on."""
    administer(application.url, ACTIVE_PATIENTS_TABLE)
    assert not schema.migrate(application).closed_to_readers
    administer(
        application.url,
        "drop schema cliniko cascade",
        "alter table public.active_patients disable row level security",
        f"insert into public.active_patients (contact_id, organization_id, {COUNTS})"
        " values (gen_random_uuid(), 'a', 1, 1, 2)",
    )
    assert schema.migrate(application).closed_to_readers
    administer(application.url, "drop schema cliniko cascade")
    assert not schema.migrate(application).closed_to_readers


def test_migration_gives_up_on_a_table_in_use(application: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "TABLE_LOCK_TIMEOUT_SECONDS", 0.1)
    administer(application.url, ACTIVE_PATIENTS_TABLE)
    before = schema_objects(application)
    with application.operator() as user:
        user.execute(sa.text("select count(*) from public.active_patients"))
        with pytest.raises(DatabaseUnavailableError) as raised:
            schema.migrate(application)
    assert_one_line(raised.value, "public.active_patients", "nothing was changed", "Try again")
    assert schema_objects(application) == before
    assert schema.migrate(application).changed


def test_migration_waits_longer_for_another_migration(application: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "TABLE_LOCK_TIMEOUT_SECONDS", 1)
    with ThreadPoolExecutor(1) as thread:
        with application.operator() as connection:
            key = {"key": engine.advisory_key("cliniko_pipeline.migrate")}
            connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), key)
            second = thread.submit(schema.migrate, application)
            with pytest.raises(TimeoutError):
                second.result(1.5)
        assert second.result(60).changed


# Changes of functions and policies. ---------------------------------------------------------------------------------


def test_migration_replaces_a_changed_function(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    before = schema.expected_version()
    administer(
        database.url,
        "create or replace function cliniko.email_key(email text) returns text language sql return 'tampered'",
    )
    changed = {"functions/email_key": sql("functions/email_key") + "-- another version\n"}
    monkeypatch.setattr(schema, "sql", lambda name: changed.get(name) or sql(name))
    with pytest.raises(DatabaseSetupError) as raised:
        schema.require_current(database)
    assert_one_line(raised.value, "another version", "cliniko-pipeline migrate")
    migration = schema.migrate(database)
    assert (migration.before, migration.changed) == (before, True)
    assert migration.after != before
    with database.organization("a") as connection:
        assert connection.execute(sa.text("select cliniko.email_key('A@B')")).scalar_one() == "a@b"


def test_migration_restores_row_level_security(database: Database) -> None:
    objects = schema_objects(database)
    for loss in (
        "alter table cliniko.patients disable row level security",
        "alter table public.active_patients no force row level security",
        "drop policy organization_isolation on cliniko.crawls",
        "drop policy organization_boundary on public.active_patients",
        f"revoke delete on cliniko.attendees from {organization_role_of(database.url)}",
    ):
        administer(database.url, loss)
        assert schema.migrate(database).changed
        assert schema_objects(database) == objects
    assert not schema.migrate(database).changed


def test_migration_of_policies_reaches_tables_of_the_operator(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames.write(database, "a", "Odd schema", "odd table", pd.DataFrame({"n": [1]}))
    changed = sql("isolation/isolate") + "; comment on table {table} is 'x'"
    for module in (schema, isolation):
        monkeypatch.setattr(module, "sql", lambda name: changed if name == "isolation/isolate" else sql(name))
    assert schema.migrate(database).changed
    with database.operator() as connection:
        commented = connection.execute(
            sa.text("select count(*) from pg_description where objsubid = 0 and description = 'x'")
        ).scalar_one()
    assert commented == len(TENANT_TABLES) + 1


# Other versions, and missing privileges. ----------------------------------------------------------------------------


def test_migration_leaves_the_schema_of_a_newer_version(database: Database) -> None:
    administer(database.url, "update cliniko.schema_version set version_num = '0099'")
    objects = schema_objects(database)
    for action in (schema.migrate, schema.require_current):
        with pytest.raises(DatabaseSetupError) as raised:
            action(database)
        assert_one_line(raised.value, "newer version of the pipeline (0099)", "install")
    assert schema_objects(database) == objects


PRIVILEGES = {
    "none": [],
    "schemas and roles": ["grant create on database {database} to {user}", "alter role {user} createrole"],
    "not the owner of active_patients": [
        "grant create on database {database} to {user}",
        "grant create on schema public to {user}",
        "create role {role}",
        "grant {role} to {user}",
        "revoke all on public.contacts from {user}",
        "alter table public.active_patients owner to {other}",
    ],
}


@pytest.mark.usefixtures("template")
def test_migration_without_privileges_changes_nothing(application: Database) -> None:
    administer(application.url, ACTIVE_PATIENTS_TABLE)
    for grants in PRIVILEGES.values():
        user = f"weak_{uuid4().hex}"
        names = {"user": user, "role": organization_role_of(application.url)}
        names |= {"database": application.url.database, "other": application.url.username}
        administer(
            application.url,
            f"create role {user} login password 'weak'",
            *(grant.format(**names) for grant in grants),
        )
        before = schema_objects(application)
        database = Database(application.url.set(username=user, password="weak"))
        try:
            with pytest.raises(DatabaseSetupError) as raised:
                schema.migrate(database)
            assert schema_objects(application) == before
        finally:
            database.close()
            administer(application.url, f"alter table public.active_patients owner to {application.url.username}")
            administer(
                application.url,
                f"drop owned by {user}",
                f"drop role {user}",
                f"drop role if exists {names['role']}",
            )
        assert_one_line(raised.value, "lacks privileges", "grant select on public.contacts", "Nothing was changed")


def migrate_to(version: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade = command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", lambda config, _: upgrade(config, version))
        patch.setattr(schema, "expected_version", lambda: version)
        # Migration 0017 creates this table.
        tables = tuple(table for table in TENANT_TABLES if table != "cliniko.daily_active_patients")
        patch.setattr(isolation, "TENANT_TABLES", tables)
        schema.migrate(database)


def test_migration_renames_checks(application: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate_to("0015", application, monkeypatch)
    old, new = ("active_patients is_not_older_than_promised", "active_patients is_fresh")
    administer(
        application.url,
        "insert into cliniko.check_results (organization_id, asset, name, holds, remark)"
        " values ('clinic', 'active_patients', 'is_not_older_than_promised', false, 'Old.')",
        "insert into cliniko.alerts (organization_id, name, kind, reason, raised_at, told_at)"
        f" values ('clinic', '{old}', 'check', 'Old.', now(), now())",
    )
    assert schema.migrate(application).changed
    with application.operator() as connection:
        assert [each.name for each in failed_checks(connection)] == ["is_fresh"]
        assert [each.name for each in open_alerts(connection)] == [new]


def test_migration_leaves_the_times_of_schedules_in_utc(application: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate_to("0012", application, monkeypatch)
    administer(
        application.url,
        "insert into public.api_credentials (organization_id, service_name, credentials_encrypted)"
        " values ('clinic', 'cliniko', '{}')",
        "insert into cliniko.scheduling (organization_id, full_sync_at) values ('clinic', '16:00')",
    )
    assert schema.migrate(application).changed
    with application.operator() as connection:
        assert scheduling.take_time_zone(connection, "clinic", "Australia/Sydney") is None
        (found,) = scheduling.schedulings(connection)
    assert (found.full_sync_at, found.time_zone) == (time(16), None)
