"""Tests of `cliniko-pipeline sync` with concurrent organizations, failures, kills and interruptions."""

import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest

from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline.sync_options import SyncOptions
from cliniko_pipeline_tests.support.accounts import add_appointment
from cliniko_pipeline_tests.support.clinics import AS_OF, Clinics
from cliniko_pipeline_tests.support.processes import (
    SCRIPT,
    CommandLine,
    assert_refused,
    children_of,
    processes_of,
    wait_until_processes_end,
)
from cliniko_pipeline_tests.support.sync_processes import home_with_files, sync_in_a_fork

NAMES = ("alpha", "beta", "gamma")
WRONG_KEY = "MS0tYS1rZXktdGhhdC1ub2JvZHktaGFz-au2"


@pytest.mark.slow
def test_deletions_are_accepted_in_a_terminal(command: CommandLine, clinics: Clinics, home: Path) -> None:
    """The organization's id looks like markup, and the live display must show it unchanged."""
    name = "[bold]alpha[/oops]"
    home_with_files(home)
    account = clinics.add(name)
    assert sync_in_a_fork(command.environ, name).succeeded
    account.delete("patients", "2")
    refused = sync_in_a_fork(command.environ, name, SyncOptions(full=True)).error or ""
    assert "patients: 1 of 2 records are no longer in Cliniko" in refused
    (doubtful,) = json.loads(command("status", "--json").stdout)
    assert (doubtful["patients"], doubtful["doubtful_deletions"]) == (2, 1)
    assert any("too many to be marked as deleted" in problem for problem in doubtful["problems"])

    shown = _in_a_terminal(command, "sync", name, "--full", "--accept-deletions", "--as-of", AS_OF.isoformat())
    for words in (r"\x1b\[", re.escape(name), "page 1/1", r"\d+ records", r"\d+ requests left this minute", "done"):
        assert re.search(words, shown)
    (accepted,) = json.loads(command("status", "--json").stdout)
    assert (accepted["patients"], accepted["doubtful_deletions"], accepted["problems"]) == (1, 0, [])


def test_unchanged_organizations_are_not_synced_if_asked(command: CommandLine, clinics: Clinics) -> None:
    account = clinics.add("alpha")
    assert sync_in_a_fork(command.environ, "alpha").succeeded
    unchanged = command("sync", "--all", "--if-changed")
    assert unchanged.returncode == 0
    assert "alpha: unchanged" in unchanged.stderr
    assert clinics.dagster_runs("alpha") == ["SUCCESS"]
    add_appointment(account, 99)
    assert command("sync", "alpha", "--if-changed").returncode == 0
    assert clinics.dagster_runs("alpha") == ["SUCCESS", "SUCCESS"]
    refused = command("sync", "alpha", "--if-changed", "--full")
    assert (refused.returncode, "--if-changed is not possible" in refused.stderr) == (2, True)


@pytest.mark.slow
def test_failures_of_others_leave_an_organization_alone(command: CommandLine, clinics: Clinics, home: Path) -> None:
    """beta has a wrong key, and the worker of gamma is killed. The other organization must succeed."""
    accounts = [clinics.add("alpha"), clinics.add("beta", api_key=WRONG_KEY), clinics.add("gamma")]
    clinics.sandbox.faults = Faults(hang_rate=1, hang_seconds=600, accounts=("gamma",))
    with command.start("sync", "--all", "--as-of", AS_OF.isoformat()) as running:
        running.wait_for("alpha: done")
        running.wait_for("beta: failed")
        running.wait_until(lambda: clinics.run_states("gamma") == [("running", None)], "gamma does not run")
        running.wait_until(lambda: len(children_of(running.process.pid)) == 1, "other workers have not ended")
        command_lines = "".join(processes_of(home).values())
        os.kill(children_of(running.process.pid)[0], signal.SIGKILL)
        assert running.wait(60) == 1
    wait_until_processes_end(home)
    assert [clinics.active(name) for name in NAMES] == [1, 0, 0]
    rows = {name: _row_of(running.output, f"Clinic {name}") for name in NAMES}
    assert ["failed" in row for row in rows.values()] == [False, True, True]
    wrong_key, killed = (line for line in running.output.splitlines() if line.startswith("Error:"))
    assert wrong_key.startswith("Error: beta failed.")
    assert "401" in wrong_key
    assert "only if Cliniko refuses a later attempt" in wrong_key
    assert killed == "Error: gamma failed. Its worker ended unexpectedly (exit code -9); sync it again."
    assert "Traceback" not in running.output
    (progress,) = (line for line in running.output.splitlines() if line.startswith("alpha: patients page 1/1"))
    assert "2 records" in progress
    assert "requests left" in progress
    states = [[state for state, _ in clinics.run_states(name)] for name in NAMES]
    assert states == [["succeeded"], ["failed"], ["failed"]]
    assert [clinics.dagster_runs(name) for name in NAMES] == [["SUCCESS"], ["FAILURE"], ["FAILURE"]]
    for secret in (WRONG_KEY, *(each.bare_key for each in accounts), command.environ["CREDENTIALS_ENCRYPTION_KEY"]):
        assert secret.removesuffix("-au2") not in running.output + command_lines

    shown = {each["id"]: each for each in json.loads(command("status", "--json").stdout)}
    assert [shown[name]["status"] for name in NAMES] == ["succeeded", "failed", "failed"]
    assert (shown["alpha"]["active_patients"], shown["alpha"]["patients"], shown["alpha"]["problems"]) == (1, 2, [])
    assert "401" in shown["beta"]["problems"][0]
    assert shown["beta"]["last_success_at"] is None
    table = command("status")
    assert table.returncode == 0
    assert "failed" in _row_of(table.stdout, "Clinic beta")
    assert "401" in table.stdout


@pytest.mark.slow
def test_ctrl_c_ends_all_workers_and_runs(command: CommandLine, clinics: Clinics, home: Path) -> None:
    # There is one organization more than workers. It must not be synced after Ctrl-C.
    names = ["alpha", "beta", "gamma", "delta", "epsilon"]
    clinics.open(names)
    clinics.sandbox.faults = Faults(hang_rate=1, hang_seconds=600)
    with command.start("sync", *names) as running:
        running.wait_until(lambda: clinics.sandbox.counters.requests() >= 2, "Cliniko was not asked")
        running.interrupt()
        assert running.wait(60) == 130, running.output
    assert running.output.rstrip().endswith("Interrupted.")
    assert "Traceback" not in running.output
    wait_until_processes_end(home)
    states = [state for name in names for state, _ in clinics.run_states(name)]
    assert len(states) >= 2
    assert set(states) == {"failed"}
    assert {state for name in names for state in clinics.dagster_runs(name)} <= {"FAILURE", "CANCELED"}
    assert not clinics.dagster_runs("epsilon")


def test_wrong_arguments_are_refused(command: CommandLine) -> None:
    for arguments, words in (
        ([], "Give the IDs of organizations, or --all"),
        (["alpha", "--all"], "Give the IDs of organizations, or --all"),
        (["alpha", "--accept-deletions"], "--accept-deletions needs --full"),
    ):
        done = command("sync", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
    assert_refused(command("sync", "nobody"), "organizations add nobody")
    assert_refused(command("sync", "--all"), "There is no organization to sync")
    for instant in ("yesterday", "2026-06-15T09:30:00"):
        assert_refused(command("sync", "alpha", "--as-of", instant), instant)


def _row_of(table: str, name: str) -> str:
    (row,) = (line for line in table.splitlines() if line.startswith(f"│ {name} "))
    return row


def _in_a_terminal(command: CommandLine, *arguments: str) -> str:
    """Run the command in a terminal, and return its output with escape sequences."""
    ours, theirs = pty.openpty()
    changes = {"TERM": "xterm-256color", "NO_COLOR": None, "COLUMNS": "160", "LINES": "40"}
    with subprocess.Popen(
        [SCRIPT, *arguments], env=command.with_changes(changes), stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:
            """The other end is closed."""
    os.close(ours)
    text = shown.decode()
    assert process.returncode == 0, text
    return text
