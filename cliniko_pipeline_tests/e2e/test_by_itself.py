"""The real daemon and webserver on a fresh Dagster home: organizations appear, are synced, and go, without a hand."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres import organizations
from cliniko_pipeline_tests.cli.command_line import CommandLine, Running
from cliniko_pipeline_tests.cli.conftest import Clinics, opened_clinics
from cliniko_pipeline_tests.conftest import environment, free_port

SUCCEEDED = [("succeeded", None)]
A_TICK_AND_ITS_RUNS = 150
"""Seconds: a tick comes every minute, and what it requests runs one after the other on a small machine."""


@pytest.fixture
def environ(database_url: URL, tmp_path: Path) -> dict[str, str]:
    # Once a day: what is requested here is requested since it is new.
    once = {"CLINIKO_SYNC_EVERY_MINUTES": "1440", "CLINIKO_FULL_SYNC_AT": "off"}
    return environment(database_url, tmp_path / "home") | once


@pytest.fixture
def clinics(environ: dict[str, str]) -> Iterator[Clinics]:
    with opened_clinics(environ) as opened:
        yield opened


def test_organizations_appear_are_synced_by_the_schedule_and_go(
    environ: dict[str, str], clinics: Clinics, tmp_path: Path
) -> None:
    clinics.open(["alpha", "beta", "gamma"])
    command = CommandLine(environ, tmp_path)
    with command.start("ui", "--port", str(free_port())) as running:
        try:
            _assert_everything_follows(running, clinics)
        finally:
            # Also when something is wrong: what it has started must not go on.
            running.interrupt()
            code = running.wait(60)
    assert code in {0, 130}
    assert "Traceback" not in running.output


def _assert_everything_follows(running: Running, clinics: Clinics) -> None:
    for name in ("alpha", "beta", "gamma"):
        running.wait_until(
            lambda name=name: clinics.run_states(name) == SUCCEEDED, A_TICK_AND_ITS_RUNS, f"{name} was not synced"
        )
    assert _partitions(clinics) == {"alpha", "beta", "gamma"}

    clinics.add("delta")
    organizations.remove(clinics.database, "alpha")
    running.wait_until(lambda: _partitions(clinics) == {"beta", "gamma", "delta"}, 60, "the partitions did not follow")
    running.wait_until(lambda: clinics.run_states("delta") == SUCCEEDED, A_TICK_AND_ITS_RUNS, "delta was not synced")
    running.wait_until(lambda: clinics.dagster_runs("delta") == ["SUCCESS"], 30, "the run did not end")
    # One run each: the ticks meanwhile found nothing due.
    assert clinics.dagster_runs("beta") == ["SUCCESS"]


def _partitions(clinics: Clinics) -> set[str]:
    with clinics.database.operator() as connection:
        return set(
            connection.exec_driver_sql(
                "select partition from dagster.dynamic_partitions where partitions_def_name = 'organizations'"
            ).scalars()
        )
