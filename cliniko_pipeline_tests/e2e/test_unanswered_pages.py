"""Syncs of an account of which Cliniko does not answer some page, or one record."""

from collections.abc import Iterator

import pytest

from cliniko_pipeline.postgres.crawls import UNREADABLE_RECORD
from cliniko_pipeline.postgres.organizations import Organization
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.sandbox.faults import BrokenRecord, Faults
from cliniko_pipeline.standings import problems
from cliniko_pipeline_tests.support.hostile_accounts import contact, individual_appointment, patient
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, SkippedTime, opened_pipeline
from cliniko_pipeline_tests.support.synced_organizations import SyncedOrganization, synced_organization

STARTS = "2026-06-12T09:30:00Z"


@pytest.fixture
def pipeline(environ: dict[str, str]) -> Iterator[PipelineUnderTest]:
    with opened_pipeline(environ, waits=SkippedTime()) as opened:
        yield opened


@pytest.fixture
def clinic(pipeline: PipelineUnderTest) -> Iterator[SyncedOrganization]:
    numbers = range(1000, 1330)
    records = {
        "patients": [patient(str(each), "Ann", f"Lee {each}") for each in numbers],
        "individual_appointments": [individual_appointment(str(each + 9000), str(each), STARTS) for each in numbers],
        "group_appointments": [],
        "attendees": [],
        "appointment_types": [],
        "practitioners": [],
    }
    account = Account.from_records("clinic", "au4", "Y2xpbmlj-au4", records)
    contacts = [contact(each, "clinic", cliniko_patient_id=str(each)) for each in numbers]
    with synced_organization(pipeline, account, contacts) as organization:
        yield organization


def told(clinic: SyncedOrganization) -> str:
    """Return what is wrong with the clinic, as `status` tells it."""
    organization = Organization(clinic.id, clinic.id, True, None, None, [])
    return " ".join(problems(organization, clinic.last_run()))


def test_page_that_is_not_answered_is_synced(clinic: SyncedOrganization) -> None:
    clinic.sandbox.faults = Faults(broken_records=(BrokenRecord("individual_appointments", "10150", largest_page=5),))
    clinic.sync()
    clinic.assert_right()
    assert len(clinic.pipeline.active_patients(clinic.id)) == 330


def test_unreadable_record_does_not_stop_later_syncs(clinic: SyncedOrganization) -> None:
    clinic.sync()
    stored = clinic.rows("cliniko.appointments")
    active = clinic.pipeline.active_patients(clinic.id)
    cursors = {row["resource"]: row["cursor"] for row in clinic.rows("cliniko.crawls")}
    broken = Faults(broken_records=(BrokenRecord("individual_appointments", "10150"),))
    clinic.sandbox.faults = broken
    clinic.account.delete("individual_appointments", "10151")
    clinic.clock.advance(hours=1)
    assert "individual_appointments, page 2, record 151: given up after 6 attempts" in clinic.fail(full=True)
    assert clinic.rows("cliniko.appointments") == stored
    assert clinic.pipeline.active_patients(clinic.id) == active
    after = {row["resource"]: row["cursor"] for row in clinic.rows("cliniko.crawls")}
    assert after["individual_appointments"] == cursors["individual_appointments"]

    clinic.put("individual_appointments", individual_appointment("20000", "1000", STARTS, cancelled_at=STARTS))
    clinic.clock.advance(hours=1)
    clinic.sync()
    assert "20000" in {row["id"] for row in clinic.rows("cliniko.appointments")}
    assert not [row for row in clinic.rows("cliniko.appointments") if row["vanished_at"] is not None]
    assert f"individual_appointments: {UNREADABLE_RECORD}" in told(clinic)
    clinic.clock.advance(hours=1)
    clinic.sync()
    assert UNREADABLE_RECORD in told(clinic)

    clinic.sandbox.faults = Faults()
    clinic.clock.advance(hours=1)
    clinic.sync(full=True)
    clinic.assert_right()
    assert [row["id"] for row in clinic.rows("cliniko.appointments") if row["vanished_at"] is not None] == ["10151"]
    assert UNREADABLE_RECORD not in told(clinic)


@pytest.mark.slow
def test_interrupted_full_sync_that_cannot_go_on_is_given_up_once(clinic: SyncedOrganization) -> None:
    """An incremental sync goes on where the full one broke off, and fails there once."""
    clinic.sync()
    clinic.clock.advance(hours=1)
    clinic.sandbox.faults = Faults(server_error_rate=1.0)
    clinic.fail(full=True)
    clinic.sandbox.faults = Faults(broken_records=(BrokenRecord("patients", "1150"),))
    assert "patients, page 2, record 151" in clinic.fail()
    clinic.sync()
    clinic.assert_right()
