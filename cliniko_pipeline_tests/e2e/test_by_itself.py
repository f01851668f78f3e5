"""The real daemon and webserver: organizations appear, are synced, pause, heal and go; the operator is told once."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.orchestration.sync_plans import _last_turn, _share
from cliniko_pipeline.postgres import organizations
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline_tests.support.alert_channels import WebhookChannel, opened_channel
from cliniko_pipeline_tests.support.clinics import Clinics, opened_clinics
from cliniko_pipeline_tests.support.environments import environment, free_port
from cliniko_pipeline_tests.support.processes import CommandLine, Running, tracebacks

SUCCEEDED = [("succeeded", None)]
A_TICK_AND_ITS_RUNS = 150
"""Seconds: a tick comes every minute, and what it requests runs one after the other on a small machine."""


@pytest.fixture
def channel() -> Iterator[WebhookChannel]:
    with opened_channel() as opened:
        yield opened


@pytest.fixture
def environ(database_url: URL, tmp_path: Path, channel: WebhookChannel) -> dict[str, str]:
    # Once a day: what is requested here is requested since it is new, or was told to be.
    once = {"CLINIKO_SYNC_EVERY_MINUTES": str(_minutes_without_a_turn()), "CLINIKO_FULL_SYNC_AT": "off"}
    return environment(database_url, tmp_path / "home") | once | {"CLINIKO_ALERT_URLS": channel.url}


def _minutes_without_a_turn() -> int:
    """About a day: no organization has its turn while the test goes on."""
    now = datetime.now(UTC)

    def time_left(organization_id: str, minutes: int) -> timedelta:
        period = timedelta(minutes=minutes)
        return _last_turn(now, period, _share(organization_id, "sync", period)) + period - now

    names = ("alpha", "beta", "gamma", "delta")
    return next(
        minutes
        for minutes in range(1440, 720, -7)
        if all(time_left(name, minutes) > timedelta(minutes=30) for name in names)
    )


@pytest.fixture
def clinics(environ: dict[str, str]) -> Iterator[Clinics]:
    with opened_clinics(environ) as opened:
        yield opened


def test_organizations_appear_are_synced_by_the_schedule_heal_and_go(
    environ: dict[str, str], clinics: Clinics, channel: WebhookChannel, tmp_path: Path
) -> None:
    accounts = {name: clinics.add(name) for name in ("alpha", "beta", "gamma")}
    command = CommandLine(environ, tmp_path)
    with command.start("ui", "--port", str(free_port())) as running:
        try:
            _assert_organizations_are_synced(running, clinics)
            # From here on beta has a turn every minute, and a key that Cliniko does not know.
            accounts["beta"].revoked = True
            assert command("organizations", "schedule", "beta", "--every", "1").returncode == 0
            _assert_partitions_follow(running, clinics)
            _assert_it_is_paused_and_told_once(running, clinics, channel)
            _replace_key(command, clinics, accounts["beta"])
            _assert_it_goes_on_and_that_is_told_once(running, clinics, channel)
        finally:
            # Also when something is wrong: what it has started must not go on.
            running.interrupt()
            code = running.wait(60)
    assert code in {0, 130}
    assert tracebacks(running.output) == []


def _assert_organizations_are_synced(running: Running, clinics: Clinics) -> None:
    for name in ("alpha", "beta", "gamma"):
        running.wait_until(
            lambda name=name: clinics.run_states(name) == SUCCEEDED, f"{name} was not synced", A_TICK_AND_ITS_RUNS
        )
    assert _partitions(clinics) == {"alpha", "beta", "gamma"}


def _assert_partitions_follow(running: Running, clinics: Clinics) -> None:
    clinics.add("delta")
    organizations.remove(clinics.database, "alpha")
    running.wait_until(lambda: _partitions(clinics) == {"beta", "gamma", "delta"}, "the partitions did not follow")
    running.wait_until(lambda: clinics.run_states("delta") == SUCCEEDED, "delta was not synced", A_TICK_AND_ITS_RUNS)
    running.wait_until(lambda: clinics.dagster_runs("delta") == ["SUCCESS"], "the run did not end")


def _assert_it_is_paused_and_told_once(running: Running, clinics: Clinics, channel: WebhookChannel) -> None:
    running.wait_until(lambda: channel.titles != [], "nothing was told", A_TICK_AND_ITS_RUNS)
    ticks = _ticks(clinics)
    running.wait_until(lambda: _ticks(clinics) >= ticks + 2, "the schedule does not tick", A_TICK_AND_ITS_RUNS)
    assert channel.titles == ["Clinic beta (beta): paused"]
    assert clinics.dagster_runs("beta") == ["SUCCESS", "FAILURE"]
    # One run each: the ticks meanwhile found nothing due.
    assert clinics.dagster_runs("gamma") == ["SUCCESS"]
    assert clinics.dagster_runs("delta") == ["SUCCESS"]


def _replace_key(command: CommandLine, clinics: Clinics, account: Account) -> None:
    account.revoked = False
    # Once it goes on, once a day is enough here, too.
    assert command("organizations", "schedule", "beta", "--default").returncode == 0
    url = clinics.sandbox.base_url(account)
    added = command("organizations", "add", "beta", "--name", "Beta", "--api-url", url, stdin=account.api_key)
    assert added.returncode == 0, added.stderr


def _assert_it_goes_on_and_that_is_told_once(running: Running, clinics: Clinics, channel: WebhookChannel) -> None:
    running.wait_until(
        lambda: clinics.dagster_runs("beta") == ["SUCCESS", "FAILURE", "SUCCESS"],
        "beta stays paused",
        A_TICK_AND_ITS_RUNS,
    )
    running.wait_until(lambda: len(channel.titles) > 1, "the recovery was not told")
    assert channel.titles[1:] == ["Clinic beta (beta): syncs again"]


def _ticks(clinics: Clinics) -> int:
    """How often the schedule has looked for what is due."""
    with clinics.database.operator() as connection:
        return connection.exec_driver_sql(
            "select count(*) from dagster.job_ticks where tick_body::jsonb ->> 'job_name' = 'cliniko_syncs'"
            " and status <> 'STARTED'"
        ).scalar_one()


def _partitions(clinics: Clinics) -> set[str]:
    with clinics.database.operator() as connection:
        return set(
            connection.exec_driver_sql(
                "select partition from dagster.dynamic_partitions where partitions_def_name = 'organizations'"
            ).scalars()
        )
