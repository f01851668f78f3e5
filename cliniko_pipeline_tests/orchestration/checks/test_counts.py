"""Tests of the asset check that compares numbers of records with Cliniko, and of the full syncs that it requests."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.faults import BrokenPage, Faults, RefusedField
from cliniko_pipeline.sandbox.server import Sandbox
from cliniko_pipeline_tests.support.hostile_accounts import attendee, group_appointment, individual_appointment, patient
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, errors_of
from cliniko_pipeline_tests.support.prepared_databases import copied_pipeline, prepared_database

NAME = "clinic"
START = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
PATIENTS, ATTENDEES = "cliniko.patients", "cliniko.attendees"


class CountedClinic:
    """A clinic with 20 patients who have an appointment each. Its sandbox has its own clock."""

    sandbox: Sandbox

    def __init__(self, pipeline: PipelineUnderTest) -> None:
        self.pipeline = pipeline
        self.account = Account(NAME, "au4", "counted-au4")
        self.now = START
        for number in range(1, 21):
            self.put("patients", patient(str(number), "Pat", f"Number {number}"))
            self.put("individual_appointments", individual_appointment(f"1{number}", str(number), _text(START)))

    @contextmanager
    def opened(self) -> Iterator["CountedClinic"]:
        with self.pipeline.sandbox([self.account], clock=self.clock) as self.sandbox:
            yield self

    def clock(self) -> float:
        return self.now.timestamp()

    def put(self, resource: str, record: dict[str, object]) -> None:
        at = _text(self.now)
        self.account.put(resource, {**record, "created_at": at, "updated_at": at})

    def add_class(self) -> None:
        self.put("group_appointments", group_appointment("200", _text(START)))
        for number in (1, 2):
            self.put("attendees", attendee(f"30{number}", "200", str(number)))

    def sync(self, **options: bool) -> dg.ExecuteInProcessResult:
        self.now += timedelta(hours=1)
        return self.pipeline.sync(NAME, START, **options)

    def sync_successfully(self, **options: bool) -> None:
        result = self.sync(**options)
        assert result.success, errors_of(result)

    def compare(self) -> list[dg.AssetCheckEvaluation]:
        self.now += timedelta(minutes=10)
        self.sandbox.counters.clear()
        result = self.pipeline.compare_counts(NAME)
        assert result.success, errors_of(result)
        evaluations = list(result.get_asset_check_evaluations())
        assert {each.partition for each in evaluations} == {NAME}
        return evaluations

    def disagreements(self) -> set[str]:
        """Return the resources whose numbers of records differ from Cliniko's."""
        remarks = [each.description or "" for each in self.compare() if not each.passed]
        return set(re.findall(r"(\w+): ", " ".join(remarks)))

    def full_crawls(self) -> set[str]:
        found = {row["resource"] for row in self.pipeline.rows(NAME, "cliniko.crawls") if row["is_full"]}
        return found - {"appointment_types", "practitioners"}

    def live(self, table: str) -> set[str]:
        return {row["id"] for row in self.pipeline.rows(NAME, table) if row["vanished_at"] is None}


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def prepare(pipeline: PipelineUnderTest) -> None:
    """Sync a clinic with a class."""
    clinic = CountedClinic(pipeline)
    clinic.add_class()
    with clinic.opened():
        pipeline.add_organization(NAME, clinic.sandbox, clinic.account)
        clinic.sync_successfully()


synced_database = prepared_database(prepare)


@pytest.fixture
def clinic(server_url: URL, synced_database: dict[str, str]) -> Iterator[CountedClinic]:
    with copied_pipeline(server_url, synced_database) as pipeline:
        clinic = CountedClinic(pipeline)
        clinic.add_class()
        clinic.now += timedelta(hours=1)
        with clinic.opened():
            yield clinic


@pytest.fixture
def new_clinic(pipeline: PipelineUnderTest) -> Iterator[CountedClinic]:
    with CountedClinic(pipeline).opened() as clinic:
        pipeline.add_organization(NAME, clinic.sandbox, clinic.account)
        yield clinic


def test_counts_agree_after_a_sync_at_one_request_a_resource(clinic: CountedClinic) -> None:
    assert clinic.disagreements() == set()
    assert clinic.sandbox.counters.requests() == 4
    assert {dict(request.parameters)["per_page"] for request in clinic.sandbox.counters.recorded} == {"1"}


def test_deleted_record_leads_to_a_full_sync_of_its_resource(clinic: CountedClinic) -> None:
    deleted = {"patients": "7", "attendees": "301", "individual_appointments": "17", "group_appointments": "200"}
    tables = {resource: f"cliniko.{resource.split('_')[-1]}" for resource in deleted}
    for resource, record_id in deleted.items():
        clinic.account.delete(resource, record_id)
    clinic.sync_successfully()
    assert all(deleted[resource] in clinic.live(table) for resource, table in tables.items())
    assert clinic.disagreements() == set(deleted)
    clinic.sync_successfully(accept_deletions=True)
    assert not any(deleted[resource] in clinic.live(table) for resource, table in tables.items())
    assert clinic.disagreements() == set()


def test_records_changed_since_the_sync_are_no_disagreement(clinic: CountedClinic) -> None:
    clinic.put("patients", patient("50", "New", "Person"))
    clinic.account.put("patients", patient("7", "Other", "Name", updated_at=_text(clinic.now)))
    clinic.now += timedelta(seconds=1)
    assert clinic.disagreements() == set()


def test_missing_record_is_added_by_a_full_sync(clinic: CountedClinic) -> None:
    """An import in Cliniko may keep the times of another system, so incremental crawls miss it.

    A rejected record is not missing.
    """
    clinic.put("patients", patient("70", "Bad", "Record", archived_at="soon"))
    clinic.sync_successfully()
    assert clinic.disagreements() == set()
    clinic.account.put("patients", patient("60", "Back", "Dated", created_at="2020-01-01T00:00:00Z"))
    assert clinic.disagreements() == {"patients"}
    clinic.sync_successfully()
    assert "60" in clinic.live(PATIENTS)
    assert clinic.full_crawls() == {"patients"}
    assert clinic.disagreements() == set()


def test_attendees_are_compared_and_read_with_the_first_class(new_clinic: CountedClinic) -> None:
    """Attendees are neither compared nor read without a class. Counts of a resource that was never read differ."""
    assert new_clinic.disagreements() == {"patients", "individual_appointments", "group_appointments", "attendees"}
    assert new_clinic.sandbox.counters.requests() == 0
    new_clinic.put("attendees", attendee("1000", "11", "1"))
    new_clinic.sync_successfully()
    assert new_clinic.disagreements() == set()
    assert new_clinic.sandbox.counters.requests(resource="attendees") == 0
    new_clinic.add_class()
    new_clinic.sync_successfully()
    assert new_clinic.live(ATTENDEES) == {"301", "302"}


def test_failed_comparison_is_one_line_with_the_reason(clinic: CountedClinic) -> None:
    clinic.account.revoked = True
    result = clinic.pipeline.compare_counts(NAME)
    assert not result.success
    assert "401" in errors_of(result)[0]
    result = clinic.pipeline.compare_counts(None)
    hint = "the run has none: launch the job cliniko_sync or cliniko_counts with the tag dagster/partition"
    assert hint in errors_of(result)[0]


def test_too_many_deletions_are_refused_until_accepted(clinic: CountedClinic) -> None:
    for number in range(1, 6):
        clinic.account.delete("patients", number)
    before = clinic.pipeline.rows(NAME, PATIENTS)
    refused = clinic.sync(full=True)
    assert not refused.success
    assert "patients: 5 of 20 records are no longer in Cliniko" in errors_of(refused)[0]
    assert clinic.pipeline.rows(NAME, PATIENTS) == before
    # The check does not report the difference again, because every sync would then be a full sync.
    assert clinic.disagreements() == set()
    clinic.sync_successfully()
    assert clinic.pipeline.rows(NAME, PATIENTS) == before
    clinic.sync_successfully(full=True, accept_deletions=True)
    assert clinic.live(PATIENTS) == {str(number) for number in range(6, 21)}
    assert clinic.disagreements() == set()


def test_deletions_up_to_the_limit_are_accepted(clinic: CountedClinic) -> None:
    record = clinic.account.get("patients", "1")
    for number in range(1, 5):
        clinic.account.delete("patients", number)
    clinic.sync_successfully(full=True)
    assert clinic.live(PATIENTS) == {str(number) for number in range(5, 21)}
    assert clinic.pipeline.rows(NAME, "cliniko.crawled_ids") == [], "they are kept during a full crawl only"
    clinic.account.put("patients", record)
    clinic.sync_successfully(full=True)
    assert clinic.live(PATIENTS) == {"1", *(str(number) for number in range(5, 21))}, "it came back"
    rows = clinic.pipeline.rows(NAME, PATIENTS)
    assert all((row["deleted_at"] is None) == (row["vanished_at"] is None) for row in rows)


def test_interrupted_full_sync_is_completed_by_the_next(clinic: CountedClinic) -> None:
    clinic.account.delete("attendees", "301")
    clinic.sandbox.faults = Faults(broken_pages=(BrokenPage("individual_appointments", 1, status=404),))
    assert not clinic.sync(full=True, accept_deletions=True).success
    clinic.sandbox.faults = Faults()
    assert clinic.live(ATTENDEES) == {"301", "302"}
    clinic.sync_successfully(accept_deletions=True)
    assert clinic.live(ATTENDEES) == {"302"}


def test_unreadable_id_prevents_marking_deletions(clinic: CountedClinic) -> None:
    record = clinic.account.get("patients", "7") or {}
    clinic.account.delete("patients", "7")
    clinic.account.put("patients", {**record, "id": "seven"})
    clinic.sync_successfully(full=True)
    assert "7" in clinic.live(PATIENTS)


def test_counts_that_cliniko_refuses_are_not_compared(clinic: CountedClinic) -> None:
    clinic.account.delete("patients", "7")
    refusal = RefusedField("created_at", "filter", resource="patients")
    clinic.sandbox.faults = Faults(refused_fields=(refusal, RefusedField("id", "sort")))
    tables = clinic.pipeline.tables(NAME)
    patients, appointments = sorted(clinic.compare(), key=lambda each: each.asset_key, reverse=True)
    assert patients.passed
    assert "patients: not compared, since " in (patients.description or "")
    assert "refuses to filter this list by created_at" in (patients.description or "")
    assert (appointments.passed, appointments.description) == (True, None)
    assert clinic.pipeline.tables(NAME) == tables
    clinic.sandbox.faults = Faults()
    assert clinic.disagreements() == {"patients"}
