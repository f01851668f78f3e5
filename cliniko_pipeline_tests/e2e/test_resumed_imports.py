"""Test of a crawl that is killed within unordered records of one clock second, and resumed by another process."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.faults import BrokenPage, Faults, RefusedField
from cliniko_pipeline.sync_options import SyncOptions
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.hostile_accounts import contact, individual_appointment, patient
from cliniko_pipeline_tests.support.pipelines import opened_pipeline
from cliniko_pipeline_tests.support.sync_processes import SyncProcesses, home_with_files
from cliniko_pipeline_tests.support.synced_organizations import (
    RESOURCES,
    START,
    SyncedOrganization,
    cliniko_text,
    synced_organization,
)

ONE_SECOND = range(1200, 1400)
"""Records of the same clock second, on the third and fourth page."""


def account() -> Account:
    records = {resource: [] for resource in RESOURCES}
    for number in range(1000, 1500):
        second = min(number, 1200) if number < ONE_SECOND.stop else number
        at = cliniko_text(START - timedelta(days=90) + timedelta(seconds=second))
        records["patients"].append(patient(str(number), "Ann", f"Lee {number}", created_at=at, updated_at=at))
    starts = cliniko_text(START - timedelta(days=3))
    records["individual_appointments"] = [
        individual_appointment(str(number + 8000), str(number), starts) for number in ONE_SECOND[:50]
    ]
    return Account.from_records("clinic", "au4", "Y2xpbmlj-au4", records)


@pytest.mark.slow
@pytest.mark.parametrize("next_page", [3, 2])
def test_crawl_killed_within_one_second_is_resumed(database_url: URL, tmp_path: Path, next_page: int) -> None:
    environ = environment(database_url, home_with_files(tmp_path))
    contacts = [contact(number, "clinic", cliniko_patient_id=str(number)) for number in ONE_SECOND]
    with (
        opened_pipeline(environ) as pipeline,
        synced_organization(pipeline, account(), contacts) as clinic,
        SyncProcesses() as processes,
    ):
        refused = (RefusedField("id", "sort"),)
        # The crawl waits for the next page until it is killed.
        unanswered = (BrokenPage("patients", next_page, status=503),)
        clinic.sandbox.faults = Faults(broken_pages=unanswered, refused_fields=refused)
        options = SyncOptions(clinic.clock.now)
        killed = processes.run(
            environ, clinic.id, options, kill_when=lambda: next_page_of(clinic) == next_page, page_by_page=True
        )
        assert killed.signal is not None
        assert next_page_of(clinic) == next_page
        assert clinic.rows("public.active_patients") == []

        clinic.sandbox.faults = Faults(refused_fields=refused)
        resumed = processes.run(environ, clinic.id, options)
        assert resumed.succeeded, resumed.error
        assert {row["id"] for row in clinic.rows("cliniko.patients")} == set(map(str, range(1000, 1500)))
        clinic.assert_right()


def next_page_of(clinic: SyncedOrganization) -> int | None:
    """Return the page at which the crawl of the patients would be resumed."""
    return next((row["next_page"] for row in clinic.rows("cliniko.crawls") if row["resource"] == "patients"), None)
