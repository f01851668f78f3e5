"""The check that compares numbers of records with Cliniko's, and the full sync it leads to."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.sandbox.faults import BrokenPage, Faults
from cliniko_pipeline.sandbox.server import Sandbox
from cliniko_pipeline_tests.support.hostile_accounts import attendee, group_appointment, individual_appointment, patient
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, errors_of

CLINIC = "clinic"
START = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
CHECKED = {"patients": "cliniko/patients"} | dict.fromkeys(
    ("individual_appointments", "group_appointments", "attendees"), "cliniko/appointments"
)


class Clinic:
    def __init__(self, pipeline: PipelineUnderTest) -> None:
        self.pipeline = pipeline
        self.account = Account(CLINIC, "au4", "counted-au4")
        self.now = START
        self.sandbox: Sandbox
        for number in range(1, 21):
            self.put("patients", patient(str(number), "Pat", f"Number {number}"))
            self.put("individual_appointments", individual_appointment(f"1{number}", str(number), _text(START)))

    def clock(self) -> float:
        return self.now.timestamp()

    def put(self, resource: str, record: dict[str, object]) -> None:
        at = _text(self.now)
        self.account.put(resource, {**record, "created_at": at, "updated_at": at})

    def sync(self, **options: bool) -> dg.ExecuteInProcessResult:
        self.now += timedelta(hours=1)
        return self.pipeline.sync(CLINIC, START, **options)

    def sync_well(self, **options: bool) -> None:
        result = self.sync(**options)
        assert result.success, errors_of(result)

    def compare(self) -> dict[str, dg.AssetCheckEvaluation]:
        self.now += timedelta(minutes=10)
        self.sandbox.counters.clear()
        result = self.pipeline.compare_counts(CLINIC)
        assert result.success, errors_of(result)
        assert {each.partition for each in result.get_asset_check_evaluations()} == {CLINIC}
        return {each.asset_key.to_user_string(): each for each in result.get_asset_check_evaluations()}

    def disagreements(self) -> set[str]:
        return {asset for asset, evaluation in self.compare().items() if not evaluation.passed}

    def live(self, table: str) -> set[str]:
        return {row["id"] for row in self.pipeline.rows(CLINIC, table) if row["vanished_at"] is None}


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def clinic(pipeline: PipelineUnderTest) -> Iterator[Clinic]:
    one = Clinic(pipeline)
    with pipeline.sandbox([one.account], clock=one.clock) as one.sandbox:
        pipeline.add_organization(CLINIC, one.sandbox, one.account)
        yield one


def with_a_class(clinic: Clinic) -> None:
    clinic.put("group_appointments", group_appointment("200", _text(START)))
    clinic.put("attendees", attendee("300", "200", "1"))
    clinic.put("attendees", attendee("301", "200", "2"))


def test_the_numbers_agree_after_a_sync_at_the_price_of_a_request_a_resource(clinic: Clinic) -> None:
    with_a_class(clinic)
    clinic.sync_well()
    assert clinic.disagreements() == set()
    assert clinic.sandbox.counters.requests() == 4
    assert {dict(request.parameters)["per_page"] for request in clinic.sandbox.counters.recorded} == {"1"}


@pytest.mark.parametrize(
    ("resource", "record_id"),
    [("patients", "7"), ("individual_appointments", "17"), ("group_appointments", "200"), ("attendees", "301")],
)
def test_a_record_that_was_deleted_for_good_leads_to_a_full_sync_of_its_resource_alone(
    clinic: Clinic, resource: str, record_id: str
) -> None:
    with_a_class(clinic)
    clinic.sync_well()
    clinic.account.delete(resource, record_id)
    clinic.sync_well()
    table = {"patients": "cliniko.patients", "attendees": "cliniko.attendees"}.get(resource, "cliniko.appointments")
    assert record_id in clinic.live(table)

    assert clinic.disagreements() == {CHECKED[resource]}
    clinic.sync_well(accept_deletions=True)

    assert record_id not in clinic.live(table)
    full = {row["resource"] for row in clinic.pipeline.rows(CLINIC, "cliniko.crawls") if row["is_full"]}
    assert full - {"appointment_types", "practitioners"} == {resource}
    assert clinic.disagreements() == set()


def test_what_was_added_or_changed_since_the_last_sync_is_no_disagreement(clinic: Clinic) -> None:
    clinic.sync_well()
    clinic.put("patients", patient("50", "New", "Person"))
    clinic.account.put("patients", patient("7", "Other", "Name", updated_at=_text(clinic.now)))
    clinic.now += timedelta(seconds=1)
    assert clinic.disagreements() == set()


def test_a_record_that_is_not_here_leads_to_a_full_sync_that_brings_it(clinic: Clinic) -> None:
    clinic.sync_well()
    # As an import does that keeps the times of another system.
    clinic.account.put("patients", patient("60", "Back", "Dated", created_at="2020-01-01T00:00:00Z"))
    assert clinic.disagreements() == {"cliniko/patients"}
    clinic.sync_well()
    assert "60" in clinic.live("cliniko.patients")
    assert clinic.disagreements() == set()


def test_a_record_that_was_set_aside_is_not_missing(clinic: Clinic) -> None:
    clinic.put("patients", patient("70", "Bad", "Record", archived_at="soon"))
    clinic.sync_well()
    assert clinic.disagreements() == set()


def test_attendees_that_were_not_read_are_not_compared(clinic: Clinic) -> None:
    clinic.put("attendees", attendee("300", "11", "1"))
    clinic.sync_well()
    assert clinic.disagreements() == set()
    assert clinic.sandbox.counters.requests(resource="attendees") == 0


def test_the_first_class_of_an_account_brings_its_attendees_and_costs_no_full_reading(clinic: Clinic) -> None:
    for number in range(150):
        clinic.put("attendees", attendee(str(1000 + number), "11", "1"))
    clinic.sync_well()
    clinic.now += timedelta(minutes=5)
    with_a_class(clinic)
    clinic.sandbox.counters.clear()
    clinic.sync_well()
    assert clinic.live("cliniko.attendees") == {"300", "301"}
    assert clinic.sandbox.counters.requests(resource="attendees") == 1


def test_nothing_is_claimed_of_what_was_never_read(clinic: Clinic) -> None:
    evaluations = clinic.compare()
    assert not any(evaluation.passed for evaluation in evaluations.values())
    assert "patients: not read to the end" in (evaluations["cliniko/patients"].description or "")
    assert clinic.sandbox.counters.requests() == 0


def test_a_revoked_key_fails_the_check_in_one_line(clinic: Clinic) -> None:
    clinic.sync_well()
    clinic.account.revoked = True
    result = clinic.pipeline.compare_counts(CLINIC)
    assert not result.success
    assert "401" in errors_of(result)[0]


def test_without_an_organization_it_is_told_how_to_choose_one(clinic: Clinic) -> None:
    result = clinic.pipeline.compare_counts(None)
    assert not result.success
    assert (
        "none was chosen: launch the job cliniko_sync or cliniko_counts with the tag dagster/partition"
        in errors_of(result)[0]
    )


# --- The share of deletions that is believed --------------------------------------------------------------


def test_a_share_of_missing_records_above_the_limit_is_refused_until_it_is_accepted(clinic: Clinic) -> None:
    clinic.sync_well()
    for number in range(1, 6):
        clinic.account.delete("patients", number)
    before = clinic.pipeline.rows(CLINIC, "cliniko.patients")

    refused = clinic.sync(full=True)

    assert not refused.success
    assert "patients: 5 of 20 records are no longer in Cliniko" in errors_of(refused)[0]
    assert f"cliniko-pipeline sync {CLINIC} --full --accept-deletions" in errors_of(refused)[0]
    assert clinic.pipeline.rows(CLINIC, "cliniko.patients") == before
    # It is told, and not found again and again by the check, which would read everything at every sync.
    assert clinic.disagreements() == set()
    clinic.sync_well()
    assert clinic.pipeline.rows(CLINIC, "cliniko.patients") == before

    clinic.sync_well(full=True, accept_deletions=True)
    assert clinic.live("cliniko.patients") == {str(number) for number in range(6, 21)}
    assert clinic.disagreements() == set()


def test_a_share_at_the_limit_is_believed(clinic: Clinic) -> None:
    clinic.sync_well()
    for number in range(1, 5):
        clinic.account.delete("patients", number)
    clinic.sync_well(full=True)
    assert clinic.live("cliniko.patients") == {str(number) for number in range(5, 21)}
    assert all(
        (row["deleted_at"] is None) == (row["vanished_at"] is None)
        for row in clinic.pipeline.rows(CLINIC, "cliniko.patients")
    )


def test_a_record_that_comes_back_is_there_again(clinic: Clinic) -> None:
    clinic.sync_well()
    record = clinic.account.get("patients", "7")
    clinic.account.delete("patients", "7")
    clinic.sync_well(full=True)
    assert "7" not in clinic.live("cliniko.patients")
    clinic.account.put("patients", record)
    clinic.sync_well(full=True)
    assert "7" in clinic.live("cliniko.patients")
    (row,) = [row for row in clinic.pipeline.rows(CLINIC, "cliniko.patients") if row["id"] == "7"]
    assert row["deleted_at"] is None


def test_what_a_full_sync_that_broke_off_had_not_come_to_the_next_sync_reads_in_full(clinic: Clinic) -> None:
    with_a_class(clinic)
    clinic.sync_well()
    clinic.account.delete("attendees", "301")
    clinic.sandbox.faults = Faults(broken_pages=(BrokenPage("individual_appointments", 1, status=404),))
    assert not clinic.sync(full=True, accept_deletions=True).success
    clinic.sandbox.faults = Faults()
    assert clinic.live("cliniko.attendees") == {"300", "301"}
    clinic.sync_well(accept_deletions=True)
    assert clinic.live("cliniko.attendees") == {"300"}


def test_where_a_records_id_is_unreadable_nothing_is_marked_as_deleted(clinic: Clinic) -> None:
    clinic.sync_well()
    record = clinic.account.get("patients", "7") or {}
    clinic.account.delete("patients", "7")
    clinic.account.put("patients", {**record, "id": "seven"})
    clinic.sync_well(full=True)
    assert "7" in clinic.live("cliniko.patients")


def test_ids_that_a_full_sync_has_seen_are_kept_no_longer_than_it_takes(clinic: Clinic) -> None:
    clinic.sync_well()
    clinic.sync_well(full=True)
    assert clinic.pipeline.rows(CLINIC, "cliniko.crawled_ids") == []
