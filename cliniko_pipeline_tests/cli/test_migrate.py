"""Tests of `cliniko-pipeline migrate`, and of other commands before the migration."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.processes import CommandLine, assert_refused


@pytest.fixture
def command(empty_database_url: URL, tmp_path: Path) -> CommandLine:
    return CommandLine(environment(empty_database_url, tmp_path), tmp_path)


@pytest.fixture
def empty(empty_database_url: URL) -> Iterator[Database]:
    database = Database(empty_database_url)
    yield database
    database.close()


def test_migrate_changes_nothing_without_application_tables(command: CommandLine, empty: Database) -> None:
    with empty.operator() as connection:
        connection.exec_driver_sql("create table public.organizations (id text primary key, name text)")
    assert_refused(command("migrate"), "public.api_credentials")
    with empty.operator() as connection:
        assert connection.exec_driver_sql("select to_regnamespace('cliniko')").scalar_one() is None


def test_unmigrated_database_is_reported(database_url: URL, tmp_path: Path) -> None:
    """A second migration is harmless.

    If the table had rows, its readers learn that they need an organization context.
    """
    command = CommandLine(environment(database_url, tmp_path), tmp_path)
    database = Database(database_url)
    with database.operator() as connection:
        connection.execute(
            sa.text(
                "drop schema cliniko cascade; alter table public.active_patients disable row level security;"
                " insert into public.active_patients (contact_id, organization_id, recent_appointment_count,"
                " upcoming_appointment_count, total_appointment_count) values (gen_random_uuid(), 'a', 1, 1, 2)"
            )
        )
    database.close()
    for arguments in (["status"], ["sync", "--all"]):
        assert_refused(command(*arguments), "cliniko-pipeline migrate")
    examined = command("doctor")
    assert examined.returncode == 1
    assert "✗ The schema is up to date" in examined.stdout

    first, second = command("migrate"), command("migrate")
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout.startswith("Migrated ")
    assert "is up to date" in second.stdout
    assert "app.organization_id" in first.stdout
    assert "app.organization_id" not in second.stdout
    heading = first.stdout.partition('docs/database.md, "')[2].partition('"')[0]
    assert f"## {heading}\n" in (Path(__file__).parents[2] / "docs" / "database.md").read_text()


def test_contacts_filter_is_checked_and_stored(database_url: URL, tmp_path: Path) -> None:
    command = CommandLine(environment(database_url, tmp_path), tmp_path)
    wrong, right, other = (
        {"CLINIKO_CONTACTS_FILTER": each} for each in ("kind = 'lead'", "name is not null", "email is not null")
    )
    assert_refused(command("migrate", **wrong), "CLINIKO_CONTACTS_FILTER", 'column "kind" does not exist')
    assert command("doctor").returncode == 0, "it was not stored"
    examined = command("doctor", **right)
    assert examined.returncode == 1
    assert (
        "✗ The schema is up to date\n  CLINIKO_CONTACTS_FILTER is set, but the database has no filter"
        in examined.stdout
    )
    assert "Stored CLINIKO_CONTACTS_FILTER" in command("migrate", **right).stdout
    assert "Stored" not in command("migrate", **right).stdout
    assert command("doctor", **right).returncode == 0
    for changed in ({}, other):
        assert "run `cliniko-pipeline migrate`" in command("doctor", **changed).stdout
        assert_refused(command("status", **changed), "CLINIKO_CONTACTS_FILTER", "`cliniko-pipeline migrate`")
    assert "Stored" in command("migrate").stdout
    assert command("status").returncode == 0


def test_migrate_creates_dagsters_tables_on_request(database_url: URL, tmp_path: Path) -> None:
    """Dagster's own processes need the tables, and a Dagster home with the shipped dagster.yaml."""
    command = CommandLine(environment(database_url, tmp_path), tmp_path)
    database = Database(database_url)
    assert command("migrate").returncode == 0
    assert not has_dagsters_tables(database)
    for _ in range(2):
        done = command("migrate", "--dagster")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("\nDagster's tables are up to date.\n")
        assert has_dagsters_tables(database)
    assert (tmp_path / "dagster" / "dagster.yaml").exists()
    database.close()


def has_dagsters_tables(database: Database) -> bool:
    with database.operator() as connection:
        return connection.exec_driver_sql("select to_regclass('dagster.runs') is not null").scalar_one()
