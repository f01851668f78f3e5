"""What the operator is told, over real HTTP, while organizations fail, pause and recover."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.engine import URL

from cliniko_pipeline.orchestration.alerting import decide, send_waiting
from cliniko_pipeline.orchestration.channels import _apprise, channels, require_known
from cliniko_pipeline.orchestration.notices import MOST_AT_ONCE
from cliniko_pipeline.orchestration.sensors import alerts, stale_organizations
from cliniko_pipeline.postgres import organizations, scheduling
from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline_tests.support.alert_channels import WebhookChannel, opened_channel
from cliniko_pipeline_tests.support.deployments import NOW, Deployment, paused
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.hostile_accounts import patient
from cliniko_pipeline_tests.support.pipelines import SkippedTime, opened_pipeline


@pytest.fixture
def channel() -> Iterator[WebhookChannel]:
    with opened_channel() as opened:
        yield opened


@pytest.fixture
def deployment(database_url: URL, tmp_path: Path, channel: WebhookChannel) -> Iterator[Deployment]:
    variables = {
        "CLINIKO_ALERT_URLS": channel.url,
        "CLINIKO_UI_URL": "https://dagster.example.org/",
        "CLINIKO_UNMATCHED_SHARE_LIMIT": "1",  # there are no contacts
    }
    with (
        dg.instance_for_test() as instance,
        opened_pipeline(
            environment(database_url, tmp_path) | variables, instance=instance, waits=SkippedTime()
        ) as pipeline,
        pipeline.sandbox([]) as sandbox,
    ):
        yield Deployment(pipeline, sandbox)


def watch(deployment: Deployment) -> str:
    """The sensor's tick; what it says."""
    context = dg.build_sensor_context(instance=deployment.pipeline.instance, resources=deployment.resources)
    return alerts.evaluate_tick(context).skip_message or ""


def look_at_freshness(deployment: Deployment) -> list[dg.AssetCheckEvaluation]:
    context = dg.build_sensor_context(instance=deployment.pipeline.instance, resources=deployment.resources)
    return list(stale_organizations.evaluate_tick(context).asset_events or [])


def change(deployment: Deployment, statement: str) -> None:
    with deployment.pipeline.database.operator() as connection:
        connection.execute(sa.text(statement))


def test_a_revoked_key_is_told_once_and_the_way_back_once(deployment: Deployment, channel: WebhookChannel) -> None:
    assert deployment.sync("alpha").success
    account = deployment.accounts["alpha"]
    account.revoked = True
    run = deployment.sync("alpha")
    assert not run.success
    for _ in range(3):
        watch(deployment)
    assert channel.titles == ["Clinic alpha (alpha): paused"]
    (message,) = channel.received
    assert "Cliniko does not know the API key" in message["message"]
    assert "`cliniko-pipeline organizations add alpha --name NAME`" in message["message"]
    assert f"Run: https://dagster.example.org/runs/{run.run_id}" in message["message"]
    assert message["type"] == "failure"
    assert account.api_key not in str(message)

    assert "alpha" not in deployment.tick(NOW + timedelta(days=1))
    account.revoked = False
    deployment.pipeline.add_organization("alpha", deployment.sandbox, account)
    assert "alpha" in deployment.tick(datetime.now(UTC) + timedelta(minutes=1)), "it goes on by itself, at once"
    watch(deployment)
    assert len(channel.titles) == 1, "that the new key works has still to be seen"
    assert deployment.sync("alpha").success
    for _ in range(3):
        watch(deployment)
    assert channel.titles[1:] == ["Clinic alpha (alpha): syncs again"]
    assert channel.received[1]["type"] == "success"


def test_what_passes_by_itself_is_told_of_when_it_has_failed_three_times(
    deployment: Deployment, channel: WebhookChannel
) -> None:
    deployment.sandbox.faults = Faults(reset_before_body_rate=1.0)
    for number in (1, 2, 3, 4):
        assert not deployment.sync("alpha").success
        watch(deployment)
        assert len(channel.titles) == (number >= 3)
    assert channel.titles == ["Clinic alpha (alpha): syncs fail"]
    deployment.sandbox.faults = Faults()
    assert deployment.sync("alpha").success
    watch(deployment)
    assert channel.titles[1:] == ["Clinic alpha (alpha): syncs again"]


def test_a_check_that_does_not_hold_is_told_as_a_warning(deployment: Deployment, channel: WebhookChannel) -> None:
    account = deployment.accounts["beta"]
    account.put("patients", patient("9", "Hyacinth", "Broken") | {"updated_at": "yesterday"})
    assert deployment.sync("beta").success
    watch(deployment)
    (message,) = channel.received
    assert message["title"] == "Clinic beta (beta): does not hold: nothing was rejected (cliniko/patients)"
    assert message["type"] == "warning"
    assert "1 of patients" in message["message"]
    assert "Hyacinth" not in str(message)

    mended_at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    account.put("patients", patient("9", "Hyacinth", "Mended") | {"updated_at": mended_at})
    assert deployment.sync("beta").success
    watch(deployment)
    assert channel.titles[1:] == ["Clinic beta (beta): holds again: nothing was rejected (cliniko/patients)"]


def test_an_organization_that_is_older_than_promised_is_told(deployment: Deployment, channel: WebhookChannel) -> None:
    for name in ("alpha", "beta"):
        assert deployment.sync(name).success
    assert look_at_freshness(deployment) == []
    change(
        deployment,
        "update cliniko.scheduling"
        " set succeeded_at = now() - interval '5 hours', known_since = now() - interval '9 days'"
        " where organization_id = 'alpha'",
    )
    (evaluation,) = look_at_freshness(deployment)
    assert (evaluation.partition, evaluation.check_name, evaluation.passed) == (
        "alpha",
        "is_not_older_than_promised",
        False,
    )
    assert look_at_freshness(deployment) == [], "it is said once"
    watch(deployment)
    assert channel.titles == ["Clinic alpha (alpha): does not hold: is not older than promised (active_patients)"]
    assert deployment.sync("alpha").success
    watch(deployment)
    assert channel.titles[1:] == ["Clinic alpha (alpha): holds again: is not older than promised (active_patients)"]


def test_an_organization_that_was_never_synced_gets_stale_too(deployment: Deployment, channel: WebhookChannel) -> None:
    deployment.tick()
    change(deployment, "update cliniko.scheduling set known_since = now() - interval '5 hours'")
    assert {each.partition for each in look_at_freshness(deployment)} == {"alpha", "beta"}
    watch(deployment)
    assert len(channel.titles) == 2
    change(deployment, "update cliniko.scheduling set is_on = false")
    assert {each.passed for each in look_at_freshness(deployment)} == {True}, "nothing is promised any more"


def test_a_notice_waits_for_its_channel(deployment: Deployment, channel: WebhookChannel) -> None:
    deployment.accounts["alpha"].revoked = True
    deployment.sync("alpha")
    channel.is_down = True
    assert "0 notices sent, 1 wait" in watch(deployment)
    channel.is_down = False
    assert "0 notices sent, 0 wait" in watch(deployment), "it is not tried again at once"
    change(deployment, "update cliniko.notices set send_at = now()")
    assert "1 notices sent" in watch(deployment)
    assert channel.titles == ["Clinic alpha (alpha): paused"]


def test_one_channel_that_is_down_keeps_nothing_from_another(
    database_url: URL, tmp_path: Path, channel: WebhookChannel
) -> None:
    with opened_channel() as other:
        other.is_down = True
        urls = {"CLINIKO_ALERT_URLS": f"{other.url}, {channel.url}"}
        with opened_pipeline(environment(database_url, tmp_path) | urls) as pipeline, pipeline.sandbox([]) as sandbox:
            Deployment(pipeline, sandbox)
            with pipeline.database.operator() as connection:
                paused(connection, "alpha", reason="a reason", run_id="run")
                paused(connection, "beta", reason="a reason", run_id="run")
            decide(pipeline.runtime)
            sent = send_waiting(pipeline.runtime)
    assert (sent.taken, sent.waiting, sent.failing) == (2, 2, ("channel 1 (json)",))
    assert len(channel.titles) == 2


def test_a_trouble_of_many_is_told_in_one_notice(deployment: Deployment, channel: WebhookChannel) -> None:
    names = [f"clinic-{number}" for number in range(MOST_AT_ONCE + 1)]
    for name in names:
        deployment.pipeline.add_organization(name, deployment.sandbox, deployment.accounts["alpha"])
        with deployment.pipeline.database.operator() as connection:
            paused(connection, name, reason="no key opens the credentials", run_id=f"run-of-{name}")
    watch(deployment)
    (message,) = channel.received
    assert message["title"] == "11 new troubles"
    for name in names:
        assert f"({name}): paused" in message["message"]
        assert f"https://dagster.example.org/runs/run-of-{name}" in message["message"]


def test_nothing_is_told_of_an_organization_that_was_removed(deployment: Deployment, channel: WebhookChannel) -> None:
    deployment.accounts["alpha"].revoked = True
    deployment.sync("alpha")
    watch(deployment)
    organizations.remove(deployment.pipeline.database, "alpha")
    watch(deployment)
    assert channel.titles == ["Clinic alpha (alpha): paused"]
    with deployment.pipeline.database.operator() as connection:
        assert connection.execute(sa.text("select count(*) from cliniko.alerts")).scalar_one() == 0


def test_without_a_channel_what_is_wrong_is_kept_and_nothing_piles_up(database_url: URL, tmp_path: Path) -> None:
    with opened_pipeline(environment(database_url, tmp_path)) as pipeline, pipeline.sandbox([]) as sandbox:
        Deployment(pipeline, sandbox)
        with pipeline.database.operator() as connection:
            paused(connection, "alpha", reason="a reason", run_id="run")
        assert decide(pipeline.runtime) == 1
        assert send_waiting(pipeline.runtime).waiting == 0
        with pipeline.database.operator() as connection:
            assert connection.execute(sa.text("select name, kind from cliniko.alerts")).all() == [("sync", "paused")]


def test_the_url_of_a_channel_is_never_shown(
    deployment: Deployment,
    channel: WebhookChannel,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    channel.is_down = True
    deployment.accounts["alpha"].revoked = True
    deployment.sync("alpha")
    watch(deployment)
    with deployment.pipeline.database.operator() as connection:
        stored = connection.execute(sa.text("select to_jsonb(notices)::text from cliniko.notices as notices")).scalars()
        assert "channel-secret" not in str(stored.all())
    assert "channel-secret" not in caplog.text + "".join(capfd.readouterr()) + repr(
        deployment.pipeline.runtime.settings
    )


def test_a_key_that_is_replaced_while_a_run_uses_the_old_one_is_not_paused_for_it(
    deployment: Deployment, channel: WebhookChannel
) -> None:
    with deployment.pipeline.database.operator() as connection:
        used = scheduling.credentials_digest(connection, "alpha")
    deployment.pipeline.add_organization("alpha", deployment.sandbox, deployment.accounts["alpha"])
    with deployment.pipeline.database.operator() as connection:
        scheduling.pause(connection, "alpha", reason="401", run_id="run", credentials=used)
    assert deployment.scheduling("alpha").paused_at is None


def test_a_failure_that_is_heard_of_after_a_later_success_says_nothing(
    deployment: Deployment, channel: WebhookChannel
) -> None:
    begun_at = datetime.now(UTC)
    assert deployment.sync("alpha").success
    with deployment.pipeline.database.operator() as connection:
        scheduling.note_failure(connection, "alpha", reason="old", run_id="run", begun_at=begun_at, is_permanent=True)
    watch(deployment)
    assert channel.titles == []
    with deployment.pipeline.database.operator() as connection:
        scheduling.note_failure(
            connection, "alpha", reason="new", run_id="run", begun_at=datetime.now(UTC), is_permanent=True
        )
    watch(deployment)
    assert channel.titles == ["Clinic alpha (alpha): syncs fail"]


def test_an_organization_that_is_enabled_again_is_promised_nothing_for_the_time_before(
    deployment: Deployment, channel: WebhookChannel
) -> None:
    assert deployment.sync("alpha").success
    change(
        deployment,
        "update cliniko.scheduling"
        " set succeeded_at = now() - interval '3 days', known_since = now() - interval '9 days'",
    )
    with deployment.pipeline.database.operator() as connection:
        scheduling.end_pause(connection, "alpha")
    assert look_at_freshness(deployment) == []


def test_nothing_newer_is_sent_before_what_a_channel_did_not_take(
    deployment: Deployment, channel: WebhookChannel
) -> None:
    channel.is_down = True
    with deployment.pipeline.database.operator() as connection:
        paused(connection, "alpha", reason="a reason", run_id="run")
    watch(deployment)
    channel.is_down = False
    with deployment.pipeline.database.operator() as connection:
        paused(connection, "beta", reason="a reason", run_id="run")
    watch(deployment)
    assert channel.titles == []
    change(deployment, "update cliniko.notices set send_at = now()")
    watch(deployment)
    assert channel.titles == ["Clinic alpha (alpha): paused", "Clinic beta (beta): paused"]


def test_what_is_longer_than_a_service_takes_is_sent_in_parts_and_its_markup_escaped() -> None:
    (discord, telegram) = channels(
        [
            SecretStr("discord://123456789/abcdefghij"),
            SecretStr("tgram://123456789:abcdefghijklmnopqrstuvwxyz-_12345678/1"),
        ]
    )
    for channel in (discord, telegram):
        require_known(channel)
        (service,) = _apprise(channel)
        parts = service._apply_overflow("x" * 9000, title="Smith & Sons <Sydney>")
        assert len(parts) > 1
