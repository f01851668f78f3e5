"""`cliniko-pipeline webhooks`: secrets of incoming events, and targets of deliveries."""

import re

import pytest
import sqlalchemy as sa

from cliniko_pipeline.postgres.operator_tables import webhook_deliveries, webhooks
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.api_servers import served
from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.processes import CommandLine, assert_refused
from cliniko_pipeline_tests.support.signatures import send
from cliniko_pipeline_tests.support.webhook_targets import opened_target

SECRET = re.compile(r"whsec_[A-Za-z0-9+/]{43}=")


@pytest.fixture(autouse=True)
def opened(clinics: Clinics) -> None:
    clinics.open(["alpha"])


def test_secret_is_printed_once_and_replaced_without_a_gap(
    command: CommandLine, clinics: Clinics, environ: dict[str, str]
) -> None:
    made = [command("webhooks", "secrets", "create", "alpha") for _ in range(2)]
    old, new = (result.stdout.strip() for result in made)
    assert all(result.returncode == 0 and SECRET.fullmatch(result.stdout.strip()) for result in made)
    assert "/v1/webhooks/alpha" in made[0].stderr
    with clinics.database.operator() as connection:
        assert webhooks.note_event(connection, "alpha", "id", None)
    listed = command("webhooks", "secrets", "list", "alpha").stdout
    assert "1 event waits for a sync" in listed
    old_id, _ = re.findall(r"\b[0-9a-f]{12}\b", listed)
    assert old_id in made[0].stderr
    assert "whsec" not in listed
    stored = str(clinics.rows("select encrypted::text from cliniko.webhook_secrets"))
    assert old.removeprefix("whsec_") not in stored
    with open_runtime(load_settings(environ)) as runtime, served(runtime) as url:
        assert [send(url, "alpha", secret).status_code for secret in (old, new)] == [202, 202]
        assert command("webhooks", "secrets", "revoke", "alpha", old_id, "--expires-in-hours", "2").returncode == 0
        assert [send(url, "alpha", secret).status_code for secret in (old, new)] == [202, 202]
        assert command("webhooks", "secrets", "revoke", "alpha", old_id).returncode == 0
        assert [send(url, "alpha", secret).status_code for secret in (old, new)] == [401, 202]
    assert_refused(command("webhooks", "secrets", "revoke", "alpha", old_id), "no secret of that id")


def test_secrets_and_targets_are_refused(command: CommandLine, clinics: Clinics) -> None:
    """An unknown organization, too many secrets and an unencrypted URL are refused."""
    for words in ("secrets create unknown", "out show unknown", "out set unknown https://hooks.example.org/"):
        assert_refused(command("webhooks", *words.split()), "unknown")
    with clinics.database.operator() as connection:
        for _ in range(webhooks.MAX_SECRETS):
            webhooks.add_secret(connection, "alpha", {})
    assert_refused(command("webhooks", "secrets", "create", "alpha"), "revoke one")
    refused = command("webhooks", "out", "set", "alpha", "http://hooks.example.org/secret-path")
    assert_refused(refused, "https://")
    assert "secret-path" not in refused.stderr


def test_target_is_set_tested_shown_and_removed(command: CommandLine, clinics: Clinics) -> None:
    with opened_target() as target:
        made = command("webhooks", "out", "set", "alpha", stdin=f"{target.url}\n")
        assert made.returncode == 0, made.stderr
        target.secret = made.stdout.strip()
        assert SECRET.fullmatch(target.secret)
        tried = command("webhooks", "out", "test", "alpha")
        assert tried.returncode == 0, tried.stderr
        (message,) = target.verified()
        assert (message["type"], message["data"]) == ("test", {"organization_id": "alpha"})
        _note_deliveries(clinics)
        shown = command("webhooks", "out", "show", "alpha")
        for words in ("127.0.0.1", "delivered", "given up", "retrying", "pending", "HTTP 503", "Disabled since"):
            assert words in shown.stdout
        everything = [made.stderr, tried.stdout, tried.stderr, shown.stdout, shown.stderr]
        assert "target-token" not in "".join(everything)
        assert command("webhooks", "out", "remove", "alpha").returncode == 0
        assert command("webhooks", "out", "test", "alpha").returncode == 1
        assert len(target.received) == 1
    with clinics.database.operator() as connection:
        assert webhook_deliveries.deliveries(connection, "alpha", 1) == []


def _note_deliveries(clinics: Clinics) -> None:
    """Store one delivery in each state."""
    with clinics.database.operator() as connection:
        target = webhook_deliveries.target(connection, "alpha")
        for number in range(4):
            assert webhook_deliveries.add_delivery(connection, target, f"run-{number}", "{}")
        connection.execute(
            sa.text(
                "update cliniko.webhook_deliveries set attempts = 1, outcome = 'HTTP 503' where run_id <> 'run-0';"
                "update cliniko.webhook_deliveries set is_taken = true, ended_at = now(), send_at = null"
                " where run_id = 'run-1';"
                "update cliniko.webhook_targets set disabled_at = now(), disabled_reason = 'Gone.';"
                "update cliniko.webhook_deliveries set ended_at = now(), send_at = null where run_id = 'run-2'"
            )
        )
