"""What is wrong is told in one line that says what to do, with an exit code that is not 0, and nothing half-written."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet
from sqlalchemy.engine import URL

from cliniko_pipeline.cli.main import COMMANDS
from cliniko_pipeline.postgres import schema
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline_tests.support.environments import environment, free_port
from cliniko_pipeline_tests.support.processes import SCRIPT, CommandLine, processes_of


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"DATABASE_URL": "mysql://user:hidden@host/name"}, ["DATABASE_URL", "PostgreSQL", "mysql"]),
        ({"DATABASE_URL": "sqlite:///hidden.db"}, ["DATABASE_URL", "PostgreSQL", "sqlite"]),
        ({"DATABASE_URL": "hidden"}, ["DATABASE_URL", "postgresql://"]),
        ({"DATABASE_URL": "postgresql://user:hidden@127.0.0.1:1/name"}, ["refused", "DATABASE_URL"]),
        ({"CLINIKO_REQUESTS_PER_MINUTE": "hidden"}, ["CLINIKO_REQUESTS_PER_MINUTE", "1 to 100000"]),
        ({"CREDENTIALS_ENCRYPTION_KEY": "hidden"}, ["CREDENTIALS_ENCRYPTION_KEY", "Fernet"]),
        ({"CLINIKO_PIPELINE_HOME": "/dev/null/home", "DATABASE_URL": ""}, ["/dev/null/home", "written"]),
        ({"CLINIKO_ALLOWED_HOSTS": "https://hidden/"}, ["CLINIKO_ALLOWED_HOSTS"]),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(command: CommandLine, changes, words) -> None:
    done = command("status", **changes)
    _assert_refused(done, *words)


def test_a_home_that_cannot_be_written_is_named_by_the_demo_and_by_dagster(command: CommandLine) -> None:
    _assert_refused(command("demo", "--no-ui", CLINIKO_PIPELINE_HOME="/dev/null/home"), "/dev/null/home", "written")
    _assert_refused(command("ui", DAGSTER_HOME="/dev/null/home"), "/dev/null/home", "written")


def test_a_wrong_encryption_key_is_told_by_every_command_that_needs_it(command: CommandLine, clinics) -> None:
    clinics.add("alpha")
    wrong = {"CREDENTIALS_ENCRYPTION_KEY": Fernet.generate_key().decode()}
    _assert_refused(command("organizations", "validate", "alpha", **wrong), "CREDENTIALS_ENCRYPTION_KEY", "alpha")
    synced = command("sync", "alpha", **wrong)
    assert synced.returncode == 1
    (line,) = (line for line in synced.stderr.splitlines() if line.startswith("Error:"))
    assert "CREDENTIALS_ENCRYPTION_KEY" in line
    assert clinics.sandbox.counters.requests() == 0
    examined = command("doctor", **wrong)
    assert examined.returncode == 1
    assert "✗ Cliniko accepts the key of 'alpha'" in examined.stdout
    assert "CREDENTIALS_ENCRYPTION_KEY" in examined.stdout


def test_a_missing_contacts_table_stops_the_migration_before_it_began(empty_database_url: URL, tmp_path: Path) -> None:
    command = CommandLine(environment(empty_database_url, tmp_path), tmp_path)
    database = Database(empty_database_url)
    with database.operator() as connection:
        connection.exec_driver_sql("create table public.organizations (id text primary key, name text)")
    _assert_refused(command("migrate"), "public.api_credentials")
    with database.operator() as connection:
        assert connection.exec_driver_sql("select to_regnamespace('cliniko')").scalar_one() is None
    database.close()


def test_an_unmigrated_database_is_told_and_migrating_twice_does_nothing(
    empty_database_url: URL, tmp_path: Path
) -> None:
    command = CommandLine(environment(empty_database_url, tmp_path), tmp_path)
    database = Database(empty_database_url)
    schema.migrate(database, create_application_tables=True)
    with database.operator() as connection:
        connection.execute(sa.text("drop schema cliniko cascade"))
    for arguments in (["status"], ["sync", "--all"]):
        _assert_refused(command(*arguments), "cliniko-pipeline migrate")
    examined = command("doctor")
    assert examined.returncode == 1
    assert "✗ The schema is up to date" in examined.stdout
    first, second = command("migrate"), command("migrate")
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout.startswith("Migrated ")
    assert "is up to date" in second.stdout
    database.close()


def test_doctor_finds_all_well_and_then_what_is_not(command: CommandLine, clinics) -> None:
    empty = command("doctor")
    assert empty.returncode == 0
    assert "organizations add" in empty.stdout
    account = clinics.add("alpha")
    clinics.add("beta")
    assert command("doctor").stdout.count("✓") == 7
    account.revoked = True
    examined = command("doctor")
    assert examined.returncode == 1
    assert "✗ Cliniko accepts the key of 'alpha'" in examined.stdout
    assert "✓ Cliniko accepts the key of 'beta'" in examined.stdout
    assert account.bare_key not in examined.stdout


def test_doctor_tells_what_does_not_keep_organizations_apart_and_migrate_mends_it(
    command: CommandLine, clinics
) -> None:
    with clinics.database.operator() as connection:
        connection.exec_driver_sql("alter table cliniko.patients no force row level security")
    examined = command("doctor")
    assert examined.returncode == 1
    assert "✗ Organizations are kept apart" in examined.stdout
    assert "cliniko.patients" in examined.stdout
    assert "Mended what keeps organizations apart" in command("migrate").stdout
    assert command("doctor").returncode == 0


def test_migrate_tells_of_readers_that_must_now_say_whose_rows_they_want(
    empty_database_url: URL, tmp_path: Path
) -> None:
    command = CommandLine(environment(empty_database_url, tmp_path), tmp_path)
    database = Database(empty_database_url)
    schema.migrate(database, create_application_tables=True)
    with database.operator() as connection:
        connection.exec_driver_sql(
            "drop schema cliniko cascade; alter table public.active_patients disable row level security;"
            " insert into public.active_patients (contact_id, organization_id, recent_appointment_count,"
            " upcoming_appointment_count, total_appointment_count) values (gen_random_uuid(), 'a', 1, 1, 2)"
        )
    database.close()
    told = command("migrate").stdout
    assert "app.organization_id" in told
    assert "docs/operations.md" in told
    heading = told.partition('docs/operations.md, "')[2].partition('"')[0]
    assert f"### {heading}\n" in (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert "app.organization_id" not in command("migrate").stdout


def test_every_command_has_help(command: CommandLine) -> None:
    assert command("--help").returncode == 0
    assert command("--version").stdout.startswith("cliniko-pipeline, version ")
    listed = command("--help").stdout
    assert all(f"  {name} " in listed for name in COMMANDS)
    assert command("nonsense").returncode == 2


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_says_what_it_does(command: CommandLine, name: str) -> None:
    done = command(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: cliniko-pipeline {name}")
    assert done.stderr == ""


def test_a_reader_that_goes_away_early_is_no_defect(command: CommandLine) -> None:
    with subprocess.Popen(
        [SCRIPT, "status", "--json"], env=command.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        running.stdout.close()
        assert running.stderr.read() == ""
        running.wait(30)


def test_the_sandbox_ends_on_sigterm(command: CommandLine) -> None:
    with command.start("sandbox", "--port", str(free_port())) as running:
        running.wait_for("surf-rehab")
        os.kill(running.process.pid, signal.SIGTERM)
        assert running.wait(15) == 0
    assert not processes_of(command.folder / "home")


def _assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    for word in words:
        assert word in line
    assert "hidden" not in line
    assert "defect" not in line
    assert done.stdout == ""
