"""Tests that finding no organization is an alarm if there were organizations before."""

from collections.abc import Iterator

import pytest

from cliniko_pipeline.orchestration.sensors import alerts
from cliniko_pipeline_tests.support.alert_channels import WebhookChannel, opened_channel
from cliniko_pipeline_tests.support.deployments import Deployment

HIDE = "update public.api_credentials set service_name = 'hidden'"
SHOW = "update public.api_credentials set service_name = 'cliniko'"


@pytest.fixture
def channel() -> Iterator[WebhookChannel]:
    with opened_channel() as opened:
        yield opened


@pytest.fixture
def variables(channel: WebhookChannel) -> dict[str, str]:
    return {"CLINIKO_ALERT_URLS": channel.url}


def test_missing_organizations_keep_partitions_and_raise_an_alert(
    deployment: Deployment, channel: WebhookChannel
) -> None:
    deployment.watch_partitions()
    deployment.tick()
    deployment.pause("alpha")
    deployment.evaluate(alerts)
    deployment.execute(HIDE)
    assert "The partitions are unchanged" in (deployment.watch_partitions() or "")
    assert deployment.partitions == {"alpha", "beta"}
    for _ in range(2):
        deployment.evaluate(alerts)
    deployment.execute(SHOW)
    deployment.evaluate(alerts)
    assert channel.titles == [
        "Clinic alpha (alpha): paused",
        "all organizations: not found",
        "all organizations: found again",
    ]
    message = channel.received[1]["message"]
    assert "public.api_credentials any more, although there were some organizations (alpha, beta)" in message
    assert "stay unchanged" in message


def test_disabled_organizations_are_not_missing(deployment: Deployment, channel: WebhookChannel) -> None:
    deployment.watch_partitions()
    deployment.tick()
    deployment.execute("update public.api_credentials set is_active = false")
    deployment.watch_partitions()
    deployment.evaluate(alerts)
    assert (deployment.partitions, channel.titles) == (set(), [])
