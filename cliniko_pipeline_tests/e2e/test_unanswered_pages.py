"""Tests of syncs during which Cliniko fails to serve a page or a record."""

from collections.abc import Iterator

import pytest

from cliniko_pipeline.cliniko.records import UNANSWERED
from cliniko_pipeline.orchestration.checks.counts import COUNTS_DIFFER
from cliniko_pipeline.sandbox.faults import BrokenPage, BrokenRecord, Faults
from cliniko_pipeline_tests.support.hostile_accounts import individual_appointment
from cliniko_pipeline_tests.support.pipelines import (
    PipelineUnderTest,
    SkippedTime,
    materializations_of,
    opened_pipeline,
)
from cliniko_pipeline_tests.support.synced_organizations import SyncedOrganization, synced_numbers

STARTS = "2026-06-12T09:30:00Z"
APPOINTMENTS = "individual_appointments"
EVERYONE = {str(each) for each in range(10_000, 10_330)}
UNREADABLE = Faults(broken_records=(BrokenRecord(APPOINTMENTS, "10150"),))


@pytest.fixture
def pipeline(environ: dict[str, str]) -> Iterator[PipelineUnderTest]:
    with opened_pipeline(environ, waits=SkippedTime()) as opened:
        yield opened


@pytest.fixture
def clinic(pipeline: PipelineUnderTest) -> Iterator[SyncedOrganization]:
    with synced_numbers(pipeline, 330, STARTS) as organization:
        yield organization


def live(clinic: SyncedOrganization) -> set[str]:
    """Return the ids of the stored appointments that are not marked as deleted."""
    return {row["id"] for row in clinic.rows("cliniko.appointments") if row["vanished_at"] is None}


def reasons(clinic: SyncedOrganization) -> list[str]:
    """Return the reasons of rejections that have no record id."""
    return [row["reason"] for row in clinic.rows("cliniko.rejected_records") if row["id"] is None]


def assert_healed(clinic: SyncedOrganization) -> None:
    clinic.sandbox.faults = Faults()
    clinic.clock.advance(hours=1)
    clinic.sync(full=True)
    clinic.assert_right()
    assert clinic.rows("cliniko.rejected_records") == []
    assert clinic.problems() == ""


def test_page_that_is_not_answered_is_synced(clinic: SyncedOrganization) -> None:
    clinic.sandbox.faults = Faults(broken_records=(BrokenRecord(APPOINTMENTS, "10150", largest_page=5),))
    clinic.sync()
    clinic.assert_right()
    assert len(clinic.pipeline.active_patients(clinic.id)) == 330
    assert clinic.rows("cliniko.rejected_records") == []


def test_unreadable_record_of_a_first_sync_is_rejected(clinic: SyncedOrganization) -> None:
    clinic.sandbox.faults = UNREADABLE
    result = clinic.sync()
    assert live(clinic) == EVERYONE - {"10150"}
    assert len(clinic.pipeline.active_patients(clinic.id)) == 329
    (reason,) = reasons(clinic)
    assert reason.startswith(f"{UNANSWERED} (record 151, after 10149 created at ")
    assert "1 records are rejected: they could not be read or understood" in clinic.problems()
    assert "the id of 1 rejected records is not known" in clinic.problems()
    metadata = materializations_of(result)["cliniko/appointments"]
    assert metadata["records_rejected"] == 1
    assert "1014" not in repr(metadata["problems"])
    assert clinic.pipeline.compare_counts(clinic.id).success
    assert COUNTS_DIFFER not in clinic.problems()
    assert_healed(clinic)


def test_unreadable_record_lets_nothing_be_marked_as_deleted(clinic: SyncedOrganization) -> None:
    clinic.sync()
    clinic.sandbox.faults = UNREADABLE
    clinic.account.delete(APPOINTMENTS, "10151")
    for _ in range(2):
        clinic.clock.advance(hours=1)
        clinic.sync(full=True)
        assert live(clinic) == EVERYONE
        assert len(reasons(clinic)) == 1
    clinic.put(APPOINTMENTS, individual_appointment("20000", "1000", STARTS, cancelled_at=STARTS))
    clinic.clock.advance(hours=1)
    clinic.sync()
    assert live(clinic) == EVERYONE | {"20000"}
    assert_healed(clinic)
    assert live(clinic) == EVERYONE - {"10151"} | {"20000"}


def test_unreadable_change_is_rejected_and_read_by_the_next_full_sync(clinic: SyncedOrganization) -> None:
    clinic.sync()
    clinic.sandbox.faults = UNREADABLE
    clinic.clock.advance(hours=1)
    clinic.put(APPOINTMENTS, individual_appointment("10150", "1150", STARTS, cancelled_at=STARTS))
    clinic.put("patients", clinic.account.get("patients", "1007") | {"last_name": "Ngo"})
    clinic.clock.advance(hours=1)
    clinic.sync()
    (reason,) = reasons(clinic)
    assert reason.startswith(f"{UNANSWERED} (record 1 of those changed since ")
    assert {row["last_name"] for row in clinic.rows("cliniko.patients") if row["id"] == "1007"} == {"Ngo"}
    assert_healed(clinic)


@pytest.mark.slow
def test_interrupted_crawl_goes_on_past_an_unreadable_page(clinic: SyncedOrganization) -> None:
    """A whole page of a first crawl fails in every page size, after Cliniko served nothing for a while."""
    clinic.sandbox.faults = Faults(server_error_rate=1.0)
    clinic.fail()
    clinic.sandbox.faults = Faults(broken_pages=(BrokenPage("patients", 2), BrokenPage(APPOINTMENTS, 3)))
    clinic.sync()
    assert len(clinic.rows("cliniko.patients")) == 230
    assert live(clinic) == EVERYONE - {str(each) for each in range(10_200, 10_300)}
    assert_healed(clinic)
