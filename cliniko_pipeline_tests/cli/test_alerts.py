"""`cliniko-pipeline alerts`, and what else the command line tells of paused organizations and failed checks."""

import json
from pathlib import Path

from cliniko_pipeline.orchestration.alerting import decide
from cliniko_pipeline.postgres.check_results import CheckResult, note_checks
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.alert_channels import opened_channel
from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.deployments import paused
from cliniko_pipeline_tests.support.processes import CommandLine


def test_a_test_notice_goes_to_every_channel(environ: dict[str, str], clinics: Clinics, tmp_path: Path) -> None:
    with opened_channel() as first, opened_channel() as second:
        command = CommandLine(environ | {"CLINIKO_ALERT_URLS": f"{first.url} {second.url}"}, tmp_path)
        tried = command("alerts", "test")
        assert (tried.returncode, tried.stderr) == (0, "")
        assert tried.stdout == "channel 1 (json): took the notice\nchannel 2 (json): took the notice\n"
        assert first.titles == second.titles == ["A test of cliniko_pipeline's alerts"]

        second.is_down = True
        tried = command("alerts", "test")
        assert tried.returncode == 1
        assert "channel 2 (json) of CLINIKO_ALERT_URLS did not take the notice" in tried.stderr
        assert "channel-secret" not in tried.stdout + tried.stderr


def test_without_a_channel_or_with_an_unknown_one_it_is_said_how_to_give_one(
    environ: dict[str, str], clinics: Clinics, tmp_path: Path
) -> None:
    tried = CommandLine(environ, tmp_path)("alerts", "test")
    assert (tried.returncode, tried.stdout) == (1, "")
    assert "CLINIKO_ALERT_URLS is not set" in tried.stderr
    tried = CommandLine(environ | {"CLINIKO_ALERT_URLS": "carrierpigeon://loft-secret"}, tmp_path)("alerts", "test")
    assert tried.returncode == 1
    assert "channel 1 (carrierpigeon) is not what Apprise understands" in tried.stderr
    assert "loft-secret" not in tried.stdout + tried.stderr


def test_what_is_wrong_is_listed_and_pauses_end_together(
    environ: dict[str, str], clinics: Clinics, tmp_path: Path
) -> None:
    clinics.open(["alpha", "beta"])
    command = CommandLine(environ, tmp_path)
    assert "Nothing is wrong" in command("alerts", "list").stdout
    with clinics.database.operator() as connection:
        for name in ("alpha", "beta"):
            paused(connection, name, reason="[b]no key[/b]", run_id="run")
        claim = "every_active_patient_with_a_contact_is_stored_once"
        note_checks(connection, [CheckResult("alpha", "active_patients", claim, False, "1 is missing.", "run")])
    with open_runtime(load_settings(environ)) as runtime:
        decide(runtime)
    listed = command("alerts", "list").stdout
    assert listed.count("paused") == 2
    assert "[b]no key[/b]" in listed
    assert f"active_patients {claim}" in listed

    told = {each["id"]: each for each in json.loads(command("status", "--json").stdout)}
    assert told["alpha"]["failed_checks"] == [f"{claim}: 1 is missing."]
    assert f"does not hold: {claim}: 1 is missing." in told["alpha"]["problems"]
    assert told["beta"]["pause_reason"] == "[b]no key[/b]"

    assert command("organizations", "enable").returncode == 2
    assert command("organizations", "enable", "alpha", "--paused").returncode == 2
    assert command("organizations", "enable", "--paused").stdout == "Ended 2 pauses.\n"
    told = {each["id"]: each for each in json.loads(command("status", "--json").stdout)}
    assert {each["pause_reason"] for each in told.values()} == {None}
