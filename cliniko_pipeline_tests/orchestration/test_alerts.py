"""Tests of alerts over real HTTP while organizations fail, pause and recover."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from pydantic import SecretStr
from sqlalchemy.engine import URL

from cliniko_pipeline.orchestration.alerts.channels import _apprise, channels, require_known
from cliniko_pipeline.orchestration.alerts.delivery import plan_messages, send_messages
from cliniko_pipeline.orchestration.alerts.messages import MAX_SINGLE_MESSAGES
from cliniko_pipeline.orchestration.sensors import alerts, stale_organizations
from cliniko_pipeline.postgres.operator_tables import organizations, scheduling
from cliniko_pipeline_tests.support.alert_channels import WebhookChannel, opened_channel
from cliniko_pipeline_tests.support.deployments import Deployment, opened_deployment
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.hostile_accounts import patient


@pytest.fixture
def channel() -> Iterator[WebhookChannel]:
    with opened_channel() as opened:
        yield opened


@pytest.fixture
def variables(channel: WebhookChannel) -> dict[str, str]:
    return {
        "CLINIKO_ALERT_URLS": channel.url,
        "CLINIKO_UI_URL": "https://dagster.example.org/",
        "CLINIKO_UNMATCHED_SHARE_LIMIT": "1",  # because there are no contacts
    }


def watch(deployment: Deployment) -> str:
    return deployment.evaluate(alerts).skip_message or ""


def freshness_changes(deployment: Deployment) -> list[dg.AssetCheckEvaluation]:
    return list(deployment.evaluate(stale_organizations).asset_events or [])


def test_pause_and_recovery_are_notified_once_each(deployment: Deployment, channel: WebhookChannel) -> None:
    account = deployment.accounts["alpha"]
    account.revoked = True
    assert not deployment.sync("alpha").success
    watch(deployment)
    assert channel.titles == [], "the refusal may pass"
    deployment.let_refusals_age()
    run = deployment.sync("alpha")
    assert not run.success
    for _ in range(3):
        watch(deployment)
    (message,) = channel.received
    assert message["title"] == "Clinic alpha (alpha): paused"
    assert "Cliniko does not know the API key" in message["message"]
    assert "`cliniko-pipeline organizations add alpha --name NAME`" in message["message"]
    assert f"Run: https://dagster.example.org/runs/{run.run_id}" in message["message"]
    assert message["type"] == "failure"
    assert account.api_key not in str(message)

    account.revoked = False
    deployment.pipeline.add_organization("alpha", deployment.sandbox, account)
    watch(deployment)
    assert len(channel.titles) == 1, "the new key has not been used yet"
    assert deployment.sync("alpha").success
    for _ in range(3):
        watch(deployment)
    assert channel.titles[1:] == ["Clinic alpha (alpha): syncs again"]
    assert channel.received[1]["type"] == "success"


def test_failed_check_is_notified_as_a_warning(deployment: Deployment, channel: WebhookChannel) -> None:
    account = deployment.accounts["beta"]
    account.put("patients", patient("9", "Hyacinth", "Broken") | {"updated_at": "yesterday"})
    assert deployment.sync("beta").success
    watch(deployment)
    (message,) = channel.received
    assert message["title"] == "Clinic beta (beta): check fails: nothing was rejected (cliniko/patients)"
    assert message["type"] == "warning"
    assert "1 of patients" in message["message"]
    assert "Hyacinth" not in str(message)

    mended_at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    account.put("patients", patient("9", "Hyacinth", "Mended") | {"updated_at": mended_at})
    assert deployment.sync("beta").success
    watch(deployment)
    assert channel.titles[1:] == ["Clinic beta (beta): check passes again: nothing was rejected (cliniko/patients)"]


def test_stale_organization_is_notified_until_synced(deployment: Deployment, channel: WebhookChannel) -> None:
    """An organization that was just enabled is not stale."""
    assert deployment.sync("alpha").success
    deployment.tick()
    assert freshness_changes(deployment) == []
    deployment.execute(
        "update cliniko.scheduling"
        " set verified_at = verified_at - interval '5 hours', known_since = now() - interval '9 days'"
    )
    with deployment.database.operator() as connection:
        scheduling.end_pause(connection, "beta")
    assert [(result.partition, result.passed) for result in freshness_changes(deployment)] == [("alpha", False)]
    assert freshness_changes(deployment) == [], "the change is reported once"
    watch(deployment)
    assert channel.titles == ["Clinic alpha (alpha): check fails: is fresh (active_patients)"]
    assert deployment.sync("alpha").success
    watch(deployment)
    assert channel.titles[1:] == ["Clinic alpha (alpha): check passes again: is fresh (active_patients)"]


def test_message_is_retried_later_and_in_order(
    deployment: Deployment, channel: WebhookChannel, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    channel.is_down = True
    deployment.pause("alpha")
    assert "0 sent, 1 waiting" in watch(deployment)
    stored = deployment.execute("select to_jsonb(notices)::text from cliniko.notices as notices")
    shown = [*stored, caplog.text, *capfd.readouterr(), repr(deployment.pipeline.runtime.settings)]
    assert stored
    assert "channel-secret" not in "".join(shown)
    channel.is_down = False
    assert "0 sent, 0 waiting" in watch(deployment), "it is not due yet"
    deployment.pause("beta")
    watch(deployment)
    assert channel.titles == [], "a newer notice waits for the older one"
    deployment.execute("update cliniko.notices set send_at = now()")
    assert "2 sent" in watch(deployment)
    assert channel.titles == ["Clinic alpha (alpha): paused", "Clinic beta (beta): paused"]
    organizations.remove(deployment.database, "alpha")
    watch(deployment)
    assert len(channel.titles) == 2, "nothing is said of a removed organization"
    assert deployment.execute("select organization_id from cliniko.alerts") == ["beta"]


def test_channel_that_is_down_delays_no_other(database_url: URL, tmp_path: Path, channel: WebhookChannel) -> None:
    with opened_channel() as other:
        other.is_down = True
        urls = {"CLINIKO_ALERT_URLS": f"{other.url}, {channel.url}"}
        with opened_deployment(environment(database_url, tmp_path) | urls) as deployment:
            deployment.pause("alpha")
            deployment.pause("beta")
            plan_messages(deployment.pipeline.runtime)
            sent = send_messages(deployment.pipeline.runtime)
    assert (sent.taken, sent.waiting, sent.failing) == (2, 2, ("channel 1 (json)",))
    assert len(channel.titles) == 2


def test_problems_of_many_are_one_message(deployment: Deployment, channel: WebhookChannel) -> None:
    names = [f"clinic-{number}" for number in range(MAX_SINGLE_MESSAGES + 1)]
    for name in names:
        deployment.pipeline.add_organization(name, deployment.sandbox, deployment.accounts["alpha"])
        deployment.pause(name, "no key opens the credentials", f"run-of-{name}")
    watch(deployment)
    (message,) = channel.received
    assert message["title"] == "11 problems"
    for name in names:
        assert f"({name}): paused" in message["message"]
        assert f"https://dagster.example.org/runs/run-of-{name}" in message["message"]


def test_alert_without_a_channel_is_stored_only(database_url: URL, tmp_path: Path) -> None:
    with opened_deployment(environment(database_url, tmp_path)) as deployment:
        deployment.pause("alpha")
        assert plan_messages(deployment.pipeline.runtime) == 1
        assert send_messages(deployment.pipeline.runtime).waiting == 0
        assert deployment.execute("select name || ' ' || kind from cliniko.alerts") == ["sync paused"]


def test_third_failure_after_the_last_success_is_notified(deployment: Deployment, channel: WebhookChannel) -> None:
    before = datetime.now(UTC)
    assert deployment.sync("alpha").success
    for is_permanent in (True, False, False, False):
        assert channel.titles == []
        started_at = before if is_permanent else datetime.now(UTC)
        failed = {"reason": "down", "run_id": "run", "started_at": started_at, "is_permanent": is_permanent}
        with deployment.database.operator() as connection:
            scheduling.note_failure(connection, "alpha", **failed)
        watch(deployment)
    assert channel.titles == ["Clinic alpha (alpha): syncs fail"]


def test_long_message_is_sent_in_parts() -> None:
    secrets = ("discord://123456789/abcdefghij", "tgram://123456789:abcdefghijklmnopqrstuvwxyz-_12345678/1")
    for channel in channels([SecretStr(secret) for secret in secrets]):
        require_known(channel)
        (service,) = _apprise(channel)
        parts = service._apply_overflow("x" * 9000, title="Smith & Sons <Sydney>")
        assert len(parts) > 1
