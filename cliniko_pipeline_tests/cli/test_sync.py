"""`cliniko-pipeline sync`: several organizations at once, some of which fail, are killed or interrupted."""

import json
import os
import pty
import re
import signal
import subprocess

import pytest

from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline_tests.support.clinics import AS_OF, Clinics
from cliniko_pipeline_tests.support.processes import SCRIPT, CommandLine, processes_of, workers_of
from cliniko_pipeline_tests.support.waiting import wait_until

NAMES = ("alpha", "beta", "gamma")
WRONG_KEY = "MS0tYS1rZXktdGhhdC1ub2JvZHktaGFz-au2"
HANGING = Faults(hang_rate=1, hang_seconds=60)


def test_a_full_sync_marks_what_cliniko_no_longer_has_where_that_is_believed_or_accepted(
    command: CommandLine, clinics: Clinics
) -> None:
    account = clinics.add("alpha")
    assert command("sync", "alpha").returncode == 0
    account.delete("patients", "2")

    refused = command("sync", "alpha", "--full")
    assert refused.returncode == 1
    (line,) = (line for line in refused.stderr.splitlines() if line.startswith("Error:"))
    assert "patients: 1 of 2 records are no longer in Cliniko" in line
    assert "cliniko-pipeline sync alpha --full --accept-deletions" in line
    (told,) = json.loads(command("status", "--json").stdout)
    assert (told["patients"], told["doubtful_deletions"]) == (2, 1)
    assert any("too many to be believed deleted" in problem for problem in told["problems"])

    accepted = command("sync", "alpha", "--full", "--accept-deletions")
    assert accepted.returncode == 0, accepted.stderr
    (told,) = json.loads(command("status", "--json").stdout)
    assert (told["patients"], told["doubtful_deletions"], told["problems"]) == (1, 0, [])


def test_deletions_can_be_accepted_of_a_full_sync_only(command: CommandLine) -> None:
    done = command("sync", "alpha", "--accept-deletions")
    assert done.returncode == 2
    assert "--accept-deletions goes with --full" in done.stderr


def test_a_wrong_key_and_a_killed_worker_fail_alone(command: CommandLine, clinics: Clinics, home) -> None:
    accounts = [clinics.add("alpha"), clinics.add("beta", api_key=WRONG_KEY), clinics.add("gamma")]
    clinics.sandbox.faults = Faults(hang_rate=1, hang_seconds=60, accounts=("gamma",))
    with command.start("sync", "--all", "--as-of", AS_OF.isoformat()) as running:
        running.wait_for("alpha: done")
        running.wait_for("beta: failed")
        running.wait_until(lambda: clinics.run_states("gamma") == [("running", None)])
        running.wait_until(lambda: len(workers_of(home)) == 1)
        command_lines = "".join(processes_of(home).values())
        os.kill(workers_of(home)[0], signal.SIGKILL)
        assert running.wait(30) == 1
    assert not processes_of(home)
    assert [clinics.active(name) for name in NAMES] == [1, 0, 0]
    rows = {name: _row_of(running.output, f"Clinic {name}") for name in NAMES}
    assert ["failed" in row for row in rows.values()] == [False, False, True]
    assert "paused" in rows["beta"]
    wrong_key, killed = (line for line in running.output.splitlines() if line.startswith("Error:"))
    assert wrong_key.startswith("Error: beta failed.")
    assert "401" in wrong_key
    assert killed == "Error: gamma failed. Its process ended unexpectedly (exit code -9); sync it again."
    assert "Traceback" not in running.output
    (progress,) = (line for line in running.output.splitlines() if line.startswith("alpha: patients page 1/1"))
    assert "2 records" in progress
    assert "requests left" in progress
    states = [[state for state, _ in clinics.run_states(name)] for name in NAMES]
    assert states == [["succeeded"], ["failed"], ["failed"]]
    assert [clinics.dagster_runs(name) for name in NAMES] == [["SUCCESS"], ["FAILURE"], ["FAILURE"]]
    for secret in (WRONG_KEY, *(each.bare_key for each in accounts), command.environ["CREDENTIALS_ENCRYPTION_KEY"]):
        assert secret.removesuffix("-au2") not in running.output + command_lines

    told = {each["id"]: each for each in json.loads(command("status", "--json").stdout)}
    assert [told[name]["status"] for name in NAMES] == ["succeeded", "failed", "failed"]
    assert (told["alpha"]["active_patients"], told["alpha"]["patients"], told["alpha"]["problems"]) == (1, 2, [])
    assert "401" in told["beta"]["problems"][0]
    assert told["beta"]["last_success_at"] is None
    table = command("status")
    assert table.returncode == 0
    assert "paused" in _row_of(table.stdout, "Clinic beta")
    assert "401" in table.stdout


def test_a_sync_that_was_killed_whole_is_told_as_failed_and_repaired_by_the_next_in_a_terminal(
    command: CommandLine, clinics: Clinics, home
) -> None:
    # A name that must not be taken for a style.
    name = "[bold]alpha[/oops]"
    clinics.add(name)
    clinics.sandbox.faults = HANGING
    with command.start("sync", name) as running:
        running.wait_until(lambda: clinics.run_states(name))
        for process in processes_of(home):
            os.kill(process, signal.SIGKILL)
        running.wait(10)
    wait_until(lambda: not processes_of(home))
    assert clinics.run_states(name) == [("running", None)]
    assert clinics.dagster_runs(name) == ["STARTED"]

    clinics.sandbox.faults = Faults()
    shown = _in_a_terminal(command, "sync", name, "--as-of", AS_OF.isoformat())
    assert clinics.active(name) == 1
    (killed, error), (repaired, _) = clinics.run_states(name)
    assert (killed, repaired) == ("failed", "succeeded")
    assert "sync the organization again" in (error or "")
    assert clinics.dagster_runs(name) == ["FAILURE", "SUCCESS"]
    # The live display, drawn anew again and again.
    assert "\x1b[" in shown
    assert name in shown
    assert "page 1/1" in shown
    assert re.search(r"\d+ records", shown)
    assert re.search(r"\d+ requests left this minute", shown)
    assert "done" in shown


def test_ctrl_c_ends_everything_within_seconds_and_leaves_no_run_unfinished(
    command: CommandLine, clinics: Clinics, home
) -> None:
    # More than there are workers: none may begin after Ctrl-C.
    names = ["alpha", "beta", "gamma", "delta", "epsilon"]
    clinics.open(names)
    clinics.sandbox.faults = HANGING
    with command.start("sync", *names) as running:
        running.wait_until(lambda: clinics.sandbox.counters.requests() >= 2)
        running.interrupt()
        code = running.wait(30)
        assert code == 130, running.output
    assert running.output.rstrip().endswith("Interrupted.")
    assert "Traceback" not in running.output
    assert not processes_of(home)
    states = [state for name in names for state, _ in clinics.run_states(name)]
    assert len(states) >= 2
    assert set(states) == {"failed"}
    assert {state for name in names for state in clinics.dagster_runs(name)} <= {"FAILURE", "CANCELED"}
    assert not clinics.dagster_runs("epsilon")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "Name organizations, or give --all"),
        (["alpha", "--all"], 2, "Name organizations, or give --all"),
        (["nobody"], 1, "organizations add nobody"),
        (["--all"], 1, "There is no organization to sync"),
        (["alpha", "--as-of", "yesterday"], 1, "yesterday"),
        (["alpha", "--as-of", "2026-06-15T09:30:00"], 1, "2026-06-15T09:30:00"),
    ],
)
def test_what_cannot_be_synced_is_refused_before_anything_is_done(command, arguments, code, words) -> None:
    done = command("sync", *arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def _row_of(table: str, name: str) -> str:
    (row,) = (line for line in table.splitlines() if line.startswith(f"│ {name} "))
    return row


def _in_a_terminal(command: CommandLine, *arguments: str) -> str:
    """What a person sees, escape sequences included."""
    ours, theirs = pty.openpty()
    changes = {"TERM": "xterm-256color", "NO_COLOR": None, "COLUMNS": "160", "LINES": "40"}
    with subprocess.Popen(
        [SCRIPT, *arguments], env=command.with_changes(changes), stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
    os.close(ours)
    text = shown.decode()
    assert process.returncode == 0, text
    return text
