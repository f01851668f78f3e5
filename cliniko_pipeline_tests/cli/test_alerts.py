"""`cliniko-pipeline alerts`, and paused organizations and failed asset checks in other commands."""

import json

from cliniko_pipeline.orchestration.alerts.delivery import plan_messages
from cliniko_pipeline.postgres.operator_tables.check_results import CheckResult, note_checks
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.alert_channels import opened_channel
from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.deployments import paused
from cliniko_pipeline_tests.support.processes import CommandLine, assert_refused


def test_test_alert_goes_to_every_channel(command: CommandLine) -> None:
    with opened_channel() as first, opened_channel() as second:
        urls = f"{first.url} {second.url}"
        tried = command("alerts", "test", CLINIKO_ALERT_URLS=urls)
        assert (tried.returncode, tried.stderr) == (0, "")
        assert tried.stdout == "channel 1 (json): sent\nchannel 2 (json): sent\n"
        assert first.titles == second.titles == ["A test of cliniko_pipeline's alerts"]

        second.is_down = True
        tried = command("alerts", "test", CLINIKO_ALERT_URLS=urls)
        assert tried.returncode == 1
        assert "The test alert was not sent to channel 2 (json) of CLINIKO_ALERT_URLS" in tried.stderr
        assert "channel-secret" not in tried.stdout + tried.stderr
    assert_refused(command("alerts", "test"), "CLINIKO_ALERT_URLS is not set")
    tried = command("alerts", "test", CLINIKO_ALERT_URLS="carrierpigeon://loft-secret")
    assert_refused(tried, "Apprise does not understand the URL of channel 1 (carrierpigeon)")
    assert "loft-secret" not in tried.stderr


def test_problems_are_listed_and_all_pauses_end(
    command: CommandLine, environ: dict[str, str], clinics: Clinics
) -> None:
    clinics.open(["alpha", "beta"])
    assert "No open alerts" in command("alerts", "list").stdout
    with clinics.database.operator() as connection:
        for name in ("alpha", "beta"):
            paused(connection, name, reason="[b]no key[/b]", run_id="run")
        claim = "every_active_patient_with_a_contact_is_stored_once"
        note_checks(connection, [CheckResult("alpha", "active_patients", claim, False, "1 is missing.", "run")])
    with open_runtime(load_settings(environ)) as runtime:
        plan_messages(runtime)
    listed = command("alerts", "list").stdout
    assert listed.count("paused") == 2
    assert "[b]no key[/b]" in listed
    assert f"active_patients {claim}" in listed

    shown = {organization["id"]: organization for organization in json.loads(command("status", "--json").stdout)}
    assert shown["alpha"]["failed_checks"] == [f"{claim}: 1 is missing."]
    assert f"failed check: {claim}: 1 is missing." in shown["alpha"]["problems"]
    assert shown["beta"]["pause_reason"] == "[b]no key[/b]"

    assert command("organizations", "enable").returncode == 2
    assert command("organizations", "enable", "alpha", "--paused").returncode == 2
    assert command("organizations", "enable", "--paused").stdout == "Resumed 2 paused organizations.\n"
    shown = {each["id"]: each for each in json.loads(command("status", "--json").stdout)}
    assert {each["pause_reason"] for each in shown.values()} == {None}
