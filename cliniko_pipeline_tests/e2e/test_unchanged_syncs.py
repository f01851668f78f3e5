"""Syncs in which nothing has changed: what they read of the tables, and when they compute and check all the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import event

from cliniko_pipeline.orchestration.checks.claims import UNCHANGED
from cliniko_pipeline.sandbox.generated import generated_account
from cliniko_pipeline_tests.support.hostile_accounts import contact
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, materializations_of
from cliniko_pipeline_tests.support.synced_organizations import START, SyncedOrganization, synced_organization

COMPUTED = ("contact_mapping", "active_patients")
FIRST_UNCHANGED = [False, True]
COMPUTED_CHECKS = (
    "every_active_patient_with_a_contact_is_stored_once",
    "matches_are_kept",
    "no_contact_is_used_twice",
    "unmatched_share_is_below_the_limit",
)
# Texts that only the large computations and counts contain.
LARGE = (
    "cliniko.persons()",
    "cliniko.organization_contacts()",
    'count(*) from "cliniko"',
    "from cliniko.contact_mapping as mapping",
    "appointment.starts_at",
)


@pytest.fixture
def clinic(pipeline: PipelineUnderTest) -> Iterator[SyncedOrganization]:
    """A clinic that has been synced twice without a change in between."""
    account = generated_account(100, 600, 3, START, 0.1)
    contacts = [contact(n, "clinic", cliniko_patient_id=each) for n, each in enumerate(account.records["patients"])]
    with synced_organization(pipeline, account, [each for n, each in enumerate(contacts) if n % 4]) as clinic:
        sync(clinic)
        assert computed(sync(clinic)) == FIRST_UNCHANGED
        yield clinic


def sync(clinic: SyncedOrganization, *, full: bool = False) -> dg.ExecuteInProcessResult:
    """Sync an hour later."""
    clinic.clock.advance(hours=1)
    return clinic.sync(full=full)


def change(clinic: SyncedOrganization, resource: str, number: int, **changes: Any) -> None:
    record = list(clinic.account.records[resource].values())[number]
    clinic.put(resource, dict(record) | changes, clinic.clock.now + timedelta(minutes=1))


def computed(result: dg.ExecuteInProcessResult) -> list[bool]:
    metadata = materializations_of(result)
    return [metadata[name]["computed_again"] for name in COMPUTED]


def kept(result: dg.ExecuteInProcessResult) -> list[bool]:
    """Return of each check that computes whether it kept its earlier result; all checks must pass."""
    evaluations = result.get_asset_check_evaluations()
    assert all(each.passed for each in evaluations)
    by_name = {each.check_name: each for each in evaluations}
    return [by_name[name].metadata[UNCHANGED].value for name in COMPUTED_CHECKS]


@contextmanager
def recorded_statements(clinic: SyncedOrganization) -> Iterator[list[str]]:
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        found.append(" ".join(statement.split()))

    engine = clinic.pipeline.database._engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_unchanged_sync_computes_nothing(clinic: SyncedOrganization) -> None:
    """A full sync computes, counts and checks everything."""
    with recorded_statements(clinic) as statements:
        result = sync(clinic)
    assert computed(result) == [False, False]
    assert kept(result) == [True, True, True, True]
    assert [each for each in statements if any(text in each for text in LARGE)] == []
    assert len(statements) < 185

    with recorded_statements(clinic) as statements:
        result = sync(clinic, full=True)
    assert computed(result) == [True, True]
    assert kept(result) == [False, False, False, False]
    assert all(any(text in each for each in statements) for text in LARGE)


def test_changed_records_are_computed_checked_and_counted(clinic: SyncedOrganization) -> None:
    change(clinic, "individual_appointments", 3, cancelled_at="2026-06-15T09:00:00Z")
    result = sync(clinic)
    assert computed(result) == [False, True]
    assert kept(result) == [False, True, True, True]

    change(clinic, "patients", 3, email="new@clinic.example")
    change(clinic, "patients", 0, id="77", created_at="2026-06-15T12:31:00Z")
    result = sync(clinic)
    assert computed(result) == [True, True]
    # The numbers of the mapping come with its materialization.
    assert kept(result) == [False, False, True, True]
    metadata = materializations_of(result)
    for name in ("patients", "appointments"):
        assert metadata[f"cliniko/{name}"]["dagster/row_count"] == len(clinic.rows(f"cliniko.{name}"))
    assert metadata["cliniko/patients"]["dagster/row_count"] == 101
    assert computed(sync(clinic)) == FIRST_UNCHANGED
    assert computed(sync(clinic)) == [False, False]


@pytest.mark.slow
def test_assets_materialized_alone_are_computed(clinic: SyncedOrganization) -> None:
    assert computed(sync(clinic)) == [False, False]
    for name in COMPUTED:
        result = clinic.pipeline.materialize(clinic.id, name)
        assert result.success
        assert materializations_of(result)[name]["computed_again"]
    assert computed(sync(clinic)) == [False, True], "alone it was judged by the present, which is later"
    assert computed(sync(clinic)) == [False, False]
