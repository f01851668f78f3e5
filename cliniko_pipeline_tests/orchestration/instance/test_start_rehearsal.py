"""Tests of the rehearsal at the daemon's start, which logs its findings once and stops nothing."""

import pytest

from cliniko_pipeline.orchestration.instance import start_rehearsal
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.deployments import Deployment


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the process forget its rehearsal, as if it were new."""
    monkeypatch.setattr(start_rehearsal, "_rehearsed", set())


def test_daemon_logs_what_would_fail_once_and_goes_on(
    deployment: Deployment, capfd: pytest.CaptureFixture[str]
) -> None:
    administer(
        deployment.database.url,
        "alter table cliniko.attendees drop column booking_id",
        "insert into public.contacts (organization_id, name) values ('alpha', 'Pat')",
    )
    deployment.watch_partitions()
    said = capfd.readouterr().err
    assert "ERROR" in said
    assert "Syncs will fail" in said
    assert 'column "booking_id"' in said
    assert "Pat" not in said
    assert deployment.partitions == {"alpha", "beta"}
    deployment.watch_partitions()
    assert "Syncs will fail" not in capfd.readouterr().err


def test_daemon_on_a_healthy_database_logs_nothing(deployment: Deployment, capfd: pytest.CaptureFixture[str]) -> None:
    deployment.watch_partitions()
    assert "Syncs will fail" not in capfd.readouterr().err
