"""The real daemon and webserver: what happens to organizations when nobody does anything."""

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
from cliniko_pipeline_tests.support.processes import CommandLine, Running, processes_of, tracebacks

SUCCEEDED = [("succeeded", None)]
TICK_SECONDS = 240
"""A tick comes every minute, and what it requests runs one after the other on a small machine."""


@pytest.fixture
def channel() -> Iterator[WebhookChannel]:
    with opened_channel() as opened:
        yield opened


@pytest.fixture
def environ(database_url: URL, tmp_path: Path, channel: WebhookChannel) -> dict[str, str]:
    # Once a day: what is due here is new, or due by a schedule of its own.
    once = {"CLINIKO_SYNC_EVERY_MINUTES": str(_minutes_without_a_due_time()), "CLINIKO_FULL_SYNC_AT": "off"}
    return environment(database_url, tmp_path / "home") | once | {"CLINIKO_ALERT_URLS": channel.url}


def _minutes_without_a_due_time() -> int:
    """Return about a day: no organization becomes due while the test goes on."""
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


@pytest.fixture
def command(environ: dict[str, str], tmp_path: Path) -> CommandLine:
    return CommandLine(environ, tmp_path)


@pytest.fixture
def running(command: CommandLine, clinics: Clinics) -> Iterator[Running]:
    """The UI with its daemon, and three organizations; it must end in order on Ctrl-C."""
    clinics.open(["alpha", "beta", "gamma"])
    with command.start("ui", "--port", str(free_port())) as running:
        try:
            yield running
        finally:
            running.interrupt()
            code = running.wait(TICK_SECONDS)
    assert code in {0, 130}
    assert tracebacks(running.output) == []
    assert not processes_of(command.folder / "home")


def test_new_organizations_are_synced_by_the_schedule(running: Running, clinics: Clinics) -> None:
    _assert_organizations_are_synced(running, clinics)


@pytest.mark.slow
def test_organizations_pause_recover_and_disappear(
    running: Running, command: CommandLine, clinics: Clinics, channel: WebhookChannel
) -> None:
    """The operator is alerted once of each change."""
    _assert_organizations_are_synced(running, clinics)
    # From here on beta is due every minute, and has a key that Cliniko does not know.
    beta = clinics.sandbox.accounts["beta"]
    beta.revoked = True
    assert command("organizations", "schedule", "beta", "--every", "1").returncode == 0
    _assert_partitions_follow(running, clinics)
    _assert_beta_is_paused(running, clinics, channel)
    _replace_key(command, clinics, beta)
    _assert_beta_recovers(running, clinics, channel)


def _assert_organizations_are_synced(running: Running, clinics: Clinics) -> None:
    for name in ("alpha", "beta", "gamma"):
        running.wait_until(
            lambda name=name: clinics.run_states(name) == SUCCEEDED, f"{name} was not synced", TICK_SECONDS
        )
    assert _partitions(clinics) == {"alpha", "beta", "gamma"}


def _assert_partitions_follow(running: Running, clinics: Clinics) -> None:
    clinics.add("delta")
    organizations.remove(clinics.database, "alpha")
    running.wait_until(lambda: _partitions(clinics) == {"beta", "gamma", "delta"}, "the partitions did not follow")
    running.wait_until(lambda: clinics.run_states("delta") == SUCCEEDED, "delta was not synced", TICK_SECONDS)
    running.wait_until(lambda: clinics.dagster_runs("delta") == ["SUCCESS"], "the run did not end")


def _assert_beta_is_paused(running: Running, clinics: Clinics, channel: WebhookChannel) -> None:
    running.wait_until(lambda: channel.titles != [], "no alert came", TICK_SECONDS)
    ticks = _ticks(clinics)
    running.wait_until(lambda: _ticks(clinics) >= ticks + 2, "the schedule does not tick", TICK_SECONDS)
    assert channel.titles == ["Clinic beta (beta): paused"]
    assert clinics.dagster_runs("beta") == ["SUCCESS", "FAILURE"]
    # One run each: the other ticks found nothing due.
    assert clinics.dagster_runs("gamma") == ["SUCCESS"]
    assert clinics.dagster_runs("delta") == ["SUCCESS"]


def _replace_key(command: CommandLine, clinics: Clinics, account: Account) -> None:
    account.revoked = False
    # Once it goes on, once a day is enough here, too.
    assert command("organizations", "schedule", "beta", "--default").returncode == 0
    url = clinics.sandbox.base_url(account)
    added = command("organizations", "add", "beta", "--name", "Beta", "--api-url", url, stdin=account.api_key)
    assert added.returncode == 0, added.stderr


def _assert_beta_recovers(running: Running, clinics: Clinics, channel: WebhookChannel) -> None:
    running.wait_until(
        lambda: clinics.dagster_runs("beta") == ["SUCCESS", "FAILURE", "SUCCESS"],
        "beta stays paused",
        TICK_SECONDS,
    )
    running.wait_until(lambda: len(channel.titles) > 1, "no alert of the recovery came")
    assert channel.titles[1:] == ["Clinic beta (beta): syncs again"]


def _ticks(clinics: Clinics) -> int:
    """The number of evaluations of the schedule."""
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
