"""Tests of the real daemon and webserver while nobody does anything."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from cliniko_pipeline.orchestration.plans.due_syncs import _last_scheduled, _offset
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline_tests.support.alert_channels import WebhookChannel, opened_channel
from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.processes import CommandLine, Running, tracebacks, wait_until_processes_end

pytestmark = pytest.mark.slow

SUCCEEDED = [("succeeded", None)]
TICK_SECONDS = 240
"""Time limit for the effects of a tick. A tick comes every minute, and a small machine runs its runs one by one."""

TICKS = """
select 1 from dagster.job_ticks where tick_body::jsonb ->> 'job_name' = 'cliniko_syncs' and status <> 'STARTED'
"""
PARTITIONS = """
select partition from dagster.dynamic_partitions where partitions_def_name = 'organizations' order by partition
"""


@pytest.fixture
def channel() -> Iterator[WebhookChannel]:
    with opened_channel() as opened:
        yield opened


@pytest.fixture
def environ(environ: dict[str, str], channel: WebhookChannel) -> dict[str, str]:
    # The schedule is daily, so an organization is due here only if it is new or has its own schedule.
    once = {"CLINIKO_SYNC_EVERY_MINUTES": str(_minutes_without_a_due_time()), "CLINIKO_FULL_SYNC_AT": "off"}
    return environ | once | {"CLINIKO_ALERT_URLS": channel.url}


def _minutes_without_a_due_time() -> int:
    """Return a schedule interval of about a day with which no organization becomes due during the test."""
    now = datetime.now(UTC)

    def time_left(organization_id: str, minutes: int) -> timedelta:
        period = timedelta(minutes=minutes)
        return _last_scheduled(now, period, _offset(organization_id, "sync", period)) + period - now

    names = ("alpha", "beta", "gamma", "delta")
    return next(
        minutes
        for minutes in range(1440, 720, -7)
        if all(time_left(name, minutes) > timedelta(minutes=30) for name in names)
    )


@pytest.fixture
def running(command: CommandLine, clinics: Clinics) -> Iterator[Running]:
    """Yield the UI with its daemon and three organizations. Assert that it ends in order on Ctrl-C."""
    clinics.open(["alpha", "beta", "gamma"])
    with command.started_ui() as running:
        yield running
    assert running.process.returncode in {0, 130}
    assert tracebacks(running.output) == []
    wait_until_processes_end(command.folder / "home")


def test_organizations_are_synced_pause_recover_and_disappear(
    running: Running, command: CommandLine, clinics: Clinics, channel: WebhookChannel
) -> None:
    """The operator is alerted once about each change."""

    def wait_for_runs(name: str, *states: str) -> None:
        failure = f"the runs of {name} are not {states}"
        running.wait_until(lambda: clinics.dagster_runs(name) == list(states), failure, TICK_SECONDS)

    for name in ("alpha", "beta", "gamma"):
        running.wait_until(lambda name=name: clinics.run_states(name) == SUCCEEDED, f"{name} waits", TICK_SECONDS)
    assert clinics.rows(PARTITIONS) == [("alpha",), ("beta",), ("gamma",)]

    # From now on, beta is due every minute and has a key that Cliniko does not know.
    beta = clinics.sandbox.accounts["beta"]
    beta.revoked = True
    assert command("organizations", "schedule", "beta", "--every", "1").returncode == 0
    clinics.add("delta")
    organizations.remove(clinics.database, "alpha")
    partitions = [("beta",), ("delta",), ("gamma",)]
    running.wait_until(lambda: clinics.rows(PARTITIONS) == partitions, "the partitions did not follow")
    wait_for_runs("delta", "SUCCESS")

    wait_for_runs("beta", "SUCCESS", "FAILURE")
    assert channel.titles == [], "the refusal may pass"
    with clinics.database.operator() as connection:
        connection.exec_driver_sql("update cliniko.scheduling set refused_at = refused_at - interval '1 hour'")
    running.wait_until(lambda: channel.titles != [], "no alert came", TICK_SECONDS)
    ticks = len(clinics.rows(TICKS))
    running.wait_until(lambda: len(clinics.rows(TICKS)) >= ticks + 2, "the schedule does not tick", TICK_SECONDS)
    assert channel.titles == ["Clinic beta (beta): paused"]
    # The other ticks found that nothing was due.
    runs = {name: clinics.dagster_runs(name) for name in ("beta", "gamma", "delta")}
    assert runs == {"beta": ["SUCCESS", "FAILURE", "FAILURE"], "gamma": ["SUCCESS"], "delta": ["SUCCESS"]}

    beta.revoked = False
    assert command("organizations", "schedule", "beta", "--default").returncode == 0
    url = clinics.sandbox.base_url(beta)
    added = command("organizations", "add", "beta", "--name", "Beta", "--api-url", url, stdin=beta.api_key)
    assert added.returncode == 0, added.stderr
    wait_for_runs("beta", "SUCCESS", "FAILURE", "FAILURE", "SUCCESS")
    running.wait_until(lambda: len(channel.titles) > 1, "no alert of the recovery came")
    assert channel.titles[1:] == ["Clinic beta (beta): syncs again"]
