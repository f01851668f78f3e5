"""`cliniko-pipeline`: help, and one-line errors with a remedy and an exit code."""

import subprocess
from importlib import import_module
from pathlib import Path

from cryptography.fernet import Fernet

from cliniko_pipeline.cli.main import COMMANDS
from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.processes import SCRIPT, CommandLine, assert_refused
from cliniko_pipeline_tests.support.sync_processes import home_with_files, sync_in_a_fork


def test_unusable_setting_is_named(command: CommandLine) -> None:
    """Commands that start Dagster report the setting too, because Dagster's home is a setting."""
    cases = [
        ("status", {"DATABASE_URL": "mysql://user:hidden@host/name"}, "DATABASE_URL", "PostgreSQL", "mysql"),
        ("status", {"DATABASE_URL": "postgresql://user:hidden@127.0.0.1:1/name"}, "refused", "DATABASE_URL"),
        ("status", {"CREDENTIALS_ENCRYPTION_KEY": "hidden"}, "CREDENTIALS_ENCRYPTION_KEY", "Fernet"),
        ("status", {"CLINIKO_PIPELINE_HOME": "/dev/null/home", "DATABASE_URL": ""}, "/dev/null/home", "writable"),
        ("demo", {"CLINIKO_PIPELINE_HOME": "/dev/null/home"}, "/dev/null/home", "written"),
        ("ui", {"DAGSTER_HOME": "/dev/null/home"}, "/dev/null/home", "written"),
    ]
    for name, changes, *words in cases:
        done = command(name, **changes)
        assert_refused(done, *words)
        assert "hidden" not in done.stderr


def test_wrong_encryption_key_is_reported(command: CommandLine, clinics: Clinics, home: Path) -> None:
    clinics.add("alpha")
    wrong = {"CREDENTIALS_ENCRYPTION_KEY": Fernet.generate_key().decode()}
    assert_refused(command("organizations", "validate", "alpha", **wrong), "CREDENTIALS_ENCRYPTION_KEY", "alpha")
    home_with_files(home)
    synced = sync_in_a_fork(command.environ | wrong, "alpha")
    assert "CREDENTIALS_ENCRYPTION_KEY" in (synced.error or "")
    assert clinics.sandbox.counters.requests() == 0
    examined = command("doctor", **wrong)
    assert examined.returncode == 1
    assert "✗ Cliniko accepts the key of 'alpha'" in examined.stdout
    assert "CREDENTIALS_ENCRYPTION_KEY" in examined.stdout


def test_every_command_has_help(command: CommandLine) -> None:
    listed = command("--help")
    assert listed.returncode == 0
    assert all(f"  {name} " in listed.stdout for name in COMMANDS)
    for name in COMMANDS:
        done = command(name, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"Usage: cliniko-pipeline {name}")
        module, _, attribute = COMMANDS[name][0].partition(":")
        assert getattr(import_module(module), attribute).get_short_help_str(200) == COMMANDS[name][1]
    assert command("nonsense").returncode == 2


def test_installed_script_prints_its_version(command: CommandLine) -> None:
    done = subprocess.run([SCRIPT, "--version"], env=command.environ, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cliniko-pipeline, version ")
    assert done.stderr == ""


def test_closed_output_is_not_a_defect(command: CommandLine) -> None:
    with subprocess.Popen(
        [SCRIPT, "status", "--json"], env=command.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == ""
