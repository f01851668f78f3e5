"""Tests of probes: what they notice, what they cost, and what they store."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from cliniko_pipeline.cliniko.exchange.throttle import digest_of
from cliniko_pipeline.postgres.operator_tables import scheduling
from cliniko_pipeline.postgres.operator_tables.request_budgets import SharedRequestBudget
from cliniko_pipeline.postgres.operator_tables.scheduling import Scheduling
from cliniko_pipeline.postgres.tables import WRITTEN
from cliniko_pipeline.probes import Failed, NeedsRun, Postponed, Unchanged, Verdict, probe, probe_and_note
from cliniko_pipeline.sandbox.accounts.generated import generated_account
from cliniko_pipeline.sandbox.faults import Faults, RefusedField
from cliniko_pipeline_tests.support.hostile_accounts import contact
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest
from cliniko_pipeline_tests.support.synced_organizations import START, SyncedOrganization, synced_organization

MINUTE = timedelta(minutes=1)


@pytest.fixture
def clinic(pipeline: PipelineUnderTest) -> Iterator[SyncedOrganization]:
    """Yield a clinic with group appointments that has been synced twice, the second time an hour ago."""
    account = generated_account(20, 100, 3, START, 0.1)
    contacts = [contact(n, "clinic", cliniko_patient_id=each) for n, each in enumerate(account.records["patients"])]
    with synced_organization(pipeline, account, contacts) as clinic:
        clinic.sync()
        clinic.clock.advance(minutes=10)
        clinic.sync()
        yield clinic


def judged(clinic: SyncedOrganization, at: datetime | None = None, seconds: float = 60) -> Verdict:
    """Probe the clinic as of the instant, by default the instant of its last sync."""
    return probe(clinic.pipeline.runtime, [clinic.id], seconds=seconds, at=at or clinic.as_of)[clinic.id]


def reason(verdict: Verdict) -> str:
    assert isinstance(verdict, NeedsRun), verdict
    return verdict.reason


def noted(clinic: SyncedOrganization) -> Scheduling:
    with clinic.pipeline.database.operator() as connection:
        return next(row for row in scheduling.schedulings(connection) if row.organization_id == clinic.id)


def execute(clinic: SyncedOrganization, statement: str, **values: object) -> None:
    """Execute in the organization context."""
    with clinic.pipeline.database.organization(clinic.id) as connection:
        connection.execute(sa.text(statement), values)


def next_change(clinic: SyncedOrganization) -> datetime:
    (row,) = [
        row
        for row in clinic.pipeline.rows(clinic.id, "cliniko.table_states")
        if row["name"] == "public.active_patients"
    ]
    return row["next_change_at"]


def test_unchanged_organization_is_verified_by_four_requests(clinic: SyncedOrganization) -> None:
    before = {table.name: clinic.pipeline.rows(clinic.id, f"{table.schema}.{table.name}") for table in WRITTEN}
    clinic.sandbox.counters.clear()
    assert judged(clinic) == Unchanged(clinic.as_of)
    assert sorted(request.resource for request in clinic.sandbox.counters.recorded) == [
        "attendees",
        "group_appointments",
        "individual_appointments",
        "patients",
    ]
    assert before == {table.name: clinic.pipeline.rows(clinic.id, f"{table.schema}.{table.name}") for table in WRITTEN}


@pytest.mark.parametrize("resource", ["patients", "individual_appointments", "group_appointments", "attendees"])
def test_changed_record_needs_a_sync(clinic: SyncedOrganization, resource: str) -> None:
    record = next(iter(clinic.account.records[resource].values()))
    clinic.put(resource, dict(record), clinic.clock.now + MINUTE)
    assert reason(judged(clinic)) == f"Cliniko has changed {resource}."
    clinic.clock.advance(minutes=10)
    clinic.sync()
    assert judged(clinic) == Unchanged(clinic.as_of)


CHANGES: dict[str, str] = {
    "a patient, by hand": "update cliniko.patients set email = 'x' where id = (select min(id) from cliniko.patients)",
    "an appointment, by hand": "delete from cliniko.appointments where kind = 'individual'",
    "an attendee, by hand": "update cliniko.attendees set cancelled_at = now()",
    "the mapping, by hand": "delete from cliniko.contact_mapping",
    "an active patient, by hand": "update public.active_patients set total_appointment_count = 99",
    "deleted active patients": "delete from public.active_patients",
    "a practitioner's name": "update cliniko.practitioners set synced_at = now() + interval '1 hour'",
    "a killed run": "update cliniko.sync_runs set status = 'failed' where started_at >= all"
    " (select started_at from cliniko.sync_runs)",
    "an interrupted crawl": "update cliniko.crawls set completed_at = null where resource = 'patients'",
    "a full crawl that is due": "update cliniko.crawls set needs_full = 'a reason' where resource = 'practitioners'",
    "a crawl without a cursor": "update cliniko.crawls set cursor = null where resource = 'attendees'",
    "a refused filter": "update cliniko.crawls set refused_fields = '{filter updated_at}' where resource = 'patients'",
}


@pytest.mark.parametrize("statement", CHANGES.values(), ids=CHANGES)
def test_change_in_the_database_needs_a_sync_and_no_request(clinic: SyncedOrganization, statement: str) -> None:
    execute(clinic, statement)
    clinic.sandbox.counters.clear()
    assert reason(judged(clinic))
    assert clinic.sandbox.counters.requests() == 0


def test_changed_contacts_need_a_sync(clinic: SyncedOrganization) -> None:
    with clinic.pipeline.database.operator() as connection:
        connection.execute(
            sa.text("update public.contacts set email = 'other@clinic.example' where organization_id = :id"),
            {"id": clinic.id},
        )
    assert "contacts" in reason(judged(clinic))


@pytest.mark.parametrize("settings", [{"activity_window_days": 61}, {"count_no_shows": False}], ids=str)
def test_changed_settings_need_a_sync(clinic: SyncedOrganization, settings: dict[str, Any]) -> None:
    runtime = clinic.pipeline.runtime
    runtime.settings = runtime.settings.model_copy(update=settings)
    assert "settings" in reason(judged(clinic))


def test_time_that_changes_an_appointment_needs_a_sync(clinic: SyncedOrganization) -> None:
    """Rows are also not known to be right for instants before the last sync, as after a clock was set back."""
    at = next_change(clinic)
    assert at > clinic.as_of
    assert judged(clinic, at - timedelta(seconds=1)) == Unchanged(at - timedelta(seconds=1))
    assert reason(judged(clinic, at))
    assert reason(judged(clinic, clinic.as_of - timedelta(seconds=1)))


def test_organization_that_was_never_synced_needs_a_sync(pipeline: PipelineUnderTest) -> None:
    account = generated_account(1, 1, 3, START)
    with synced_organization(pipeline, account, []) as clinic:
        assert "not succeeded" in reason(judged(clinic))


def test_refused_key_needs_a_sync_which_reports_it(clinic: SyncedOrganization) -> None:
    clinic.account.revoked = True
    assert "401" in reason(judged(clinic))


def test_filter_that_cliniko_refuses_now_needs_a_sync(clinic: SyncedOrganization) -> None:
    clinic.sandbox.faults = Faults(refused_fields=(RefusedField("updated_at", "filter"),))
    assert reason(judged(clinic))


def test_probe_without_a_request_in_the_budget_is_postponed(clinic: SyncedOrganization) -> None:
    """The budget allows no request for a minute, as after a 429."""
    SharedRequestBudget(clinic.pipeline.database, digest_of(clinic.account.api_key), 1).block(60)
    clinic.sandbox.counters.clear()
    assert judged(clinic) == Postponed()
    assert clinic.sandbox.counters.requests() == 0


def test_probe_after_the_deadline_is_postponed(clinic: SyncedOrganization) -> None:
    clinic.sandbox.counters.clear()
    assert judged(clinic, seconds=0) == Postponed()
    assert clinic.sandbox.counters.requests() == 0


def test_failure_counts_as_a_failed_sync_until_a_probe_succeeds(clinic: SyncedOrganization) -> None:
    runtime = clinic.pipeline.runtime

    def probed() -> Verdict:
        return probe_and_note(runtime, [clinic.id], seconds=60)[clinic.id]

    # The probe judges by the database's clock, and the clinic by its own.
    execute(clinic, "update cliniko.table_states set next_change_at = null, as_of = '2000-01-01'")
    clinic.sandbox.faults = Faults(server_error_rate=1.0)
    assert isinstance(probed(), Failed)
    state = noted(clinic)
    assert (state.failures, state.failed_run_id, state.failure_is_permanent) == (1, None, False)
    assert state.requested_at is not None
    assert state.retry_at is not None
    assert state.retry_at > state.requested_at
    clinic.sandbox.faults = Faults()
    found = probed()
    assert isinstance(found, Unchanged)
    state = noted(clinic)
    assert (state.failures, state.failure_reason, state.retry_at, state.verified_at) == (0, None, None, found.at)


def test_result_is_not_stored_if_a_sync_succeeded_in_between(clinic: SyncedOrganization) -> None:
    seen = {clinic.id: noted(clinic)}
    with clinic.pipeline.database.operator() as connection:
        scheduling.note_success(connection, clinic.id, as_of=START)
        scheduling.note_verified(connection, {clinic.id: START + MINUTE}, seen)
    assert noted(clinic).verified_at == START
