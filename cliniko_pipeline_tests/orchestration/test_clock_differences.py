"""Tests of syncs if this machine's clock or Cliniko's clock differs from the database's clock."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.orchestration.schedules import cliniko_syncs
from cliniko_pipeline.postgres.operator_tables import scheduling
from cliniko_pipeline.postgres.operator_tables.check_results import failed_checks
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline_tests.support import hostile_accounts as hostile
from cliniko_pipeline_tests.support.deployments import Deployment
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.pipelines import (
    PipelineUnderTest,
    errors_of,
    materializations_of,
    opened_pipeline,
)
from cliniko_pipeline_tests.support.synced_organizations import cliniko_text

HOUR = timedelta(hours=1)
YEAR = timedelta(days=365)
FAR = [-YEAR, -2 * HOUR, 2 * HOUR, YEAR]


@pytest.fixture
def variables() -> dict[str, str]:
    return {"CLINIKO_MAX_CLOCK_SKEW_MINUTES": "60"}


class Clinic:
    """An organization with one active patient. The test sets the machine's clock and Cliniko's clock."""

    def __init__(self, pipeline: PipelineUnderTest) -> None:
        self.pipeline = pipeline
        self.cliniko_ahead = timedelta(0)
        pipeline.runtime._wall_clock = lambda: time.time() + self.machine_ahead.total_seconds()
        self.machine_ahead = timedelta(0)
        self.account = Account("clinic", "au4", "clinic-key-au4")
        now = datetime.now(UTC)
        self.account.put("patients", hostile.patient("1", "Ann", "Lee"))
        self.account.put("individual_appointments", appointment("10", now - timedelta(days=1)))
        pipeline.add_contacts([hostile.contact(1, "clinic", cliniko_patient_id="1")])

    def clock(self) -> float:
        return time.time() + self.cliniko_ahead.total_seconds()

    def failed_checks(self) -> list[str]:
        with self.pipeline.database.operator() as connection:
            return [f"{each.name}: {each.remark}" for each in failed_checks(connection)]


def appointment(id_: str, at: datetime) -> dict[str, object]:
    now = cliniko_text(datetime.now(UTC))
    return hostile.individual_appointment(id_, "1", cliniko_text(at)) | {"created_at": now, "updated_at": now}


@pytest.fixture
def clinic(database_url: URL, tmp_path: Path, variables: dict[str, str]) -> Iterator[Clinic]:
    with opened_pipeline(environment(database_url, tmp_path) | variables) as pipeline:
        clinic = Clinic(pipeline)
        with pipeline.sandbox([clinic.account], clock=clinic.clock) as sandbox:
            pipeline.add_organization("clinic", sandbox, clinic.account)
            yield clinic


def assert_refused(clinic: Clinic, words: str, **options: datetime) -> None:
    """Assert that a sync fails with these words and leaves the stored rows unchanged."""
    before = clinic.pipeline.contents("clinic")
    result = clinic.pipeline.sync("clinic", **options, log_level="CRITICAL")
    assert not result.success
    assert any(words in error and "more than the 60 minutes allowed" in error for error in errors_of(result))
    after = clinic.pipeline.contents("clinic")
    # A failed crawl leaves its beginning, which marks the resource as incomplete.
    before.pop("cliniko.crawls")
    after.pop("cliniko.crawls")
    assert after == before


def test_machine_clock_far_off_is_refused(clinic: Clinic) -> None:
    assert clinic.pipeline.sync("clinic").success
    clinic.account.put("individual_appointments", appointment("11", datetime.now(UTC) + timedelta(days=1)))
    for ahead in FAR:
        clinic.machine_ahead = ahead
        assert_refused(clinic, "This machine's clock is")
    assert_refused(clinic, "This machine's clock is", as_of=datetime.now(UTC))
    assert len(clinic.pipeline.active_patients("clinic")) == 1
    clinic.machine_ahead = timedelta(0)
    assert clinic.pipeline.sync("clinic").success
    (row,) = clinic.pipeline.active_patients("clinic").values()
    assert row["upcoming_appointment_count"] == 1


def test_cliniko_clock_far_off_is_refused(clinic: Clinic) -> None:
    assert clinic.pipeline.sync("clinic").success
    clinic.account.put("individual_appointments", appointment("11", datetime.now(UTC) + timedelta(days=1)))
    for ahead in FAR:
        clinic.cliniko_ahead = ahead
        assert_refused(clinic, "Cliniko's clock is", as_of=datetime.now(UTC))
    clinic.cliniko_ahead = timedelta(0)
    assert clinic.pipeline.sync("clinic").success
    (row,) = clinic.pipeline.active_patients("clinic").values()
    assert row["upcoming_appointment_count"] == 1


def test_notable_differences_are_reported_until_they_end(clinic: Clinic) -> None:
    clinic.machine_ahead, clinic.cliniko_ahead = timedelta(minutes=30), timedelta(minutes=-20)
    result = clinic.pipeline.sync("clinic")
    assert result.success, errors_of(result)
    told = (
        "This machine's clock is 30 minutes ahead of the database's."
        " Cliniko's clock is 20 minutes behind the database's."
    )
    assert materializations_of(result)["cliniko/patients"]["clocks"] == told
    assert clinic.failed_checks() == [f"clocks_agree: {told}"]
    (row,) = clinic.pipeline.active_patients("clinic").values()
    assert abs(row["search_date_to"].replace(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=10)
    clinic.machine_ahead = clinic.cliniko_ahead = timedelta(0)
    result = clinic.pipeline.sync("clinic")
    assert "clocks" not in materializations_of(result)["cliniko/patients"]
    assert clinic.failed_checks() == []


def test_schedule_of_a_daemon_ahead_keeps_the_databases_time(deployment: Deployment) -> None:
    """The request must have the database's time.

    With a time a year ahead, the organization would not be due for a year.
    """
    now = datetime.now(UTC)
    deployment.pipeline.runtime._wall_clock = lambda: time.time() + YEAR.total_seconds()
    assert {each.partition_key for each in deployment.requests(cliniko_syncs, now + YEAR)} == {"alpha", "beta"}
    with deployment.database.operator() as connection:
        requested = [each.requested_at for each in scheduling.schedulings(connection)]
    assert all(each is not None and abs(each - now) < timedelta(minutes=10) for each in requested)
