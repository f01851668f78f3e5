"""Tests of syncs that find no changes: what they read from tables, and when they still compute and check."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import event

from cliniko_pipeline.orchestration.checks.definitions import REUSED
from cliniko_pipeline.sandbox.accounts.generated import generated_account
from cliniko_pipeline_tests.support.hostile_accounts import contact
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, materializations_of
from cliniko_pipeline_tests.support.synced_organizations import START, SyncedOrganization, synced_organization

KEPT_CHECKS = (
    "matches_are_kept",
    "no_contact_is_used_twice",
    "unmatched_share_is_below_the_limit",
)
# Texts that occur only in statements that an unchanged sync leaves out.
LARGE = ('count(*) from "cliniko"', "candidate_count", "contacts_used_twice")


@pytest.fixture
def clinic(pipeline: PipelineUnderTest) -> Iterator[SyncedOrganization]:
    """Yield a clinic that has been synced once."""
    account = generated_account(100, 600, 3, START, 0.1)
    contacts = [contact(n, "clinic", cliniko_patient_id=each) for n, each in enumerate(account.records["patients"])]
    with synced_organization(pipeline, account, [each for n, each in enumerate(contacts) if n % 4]) as clinic:
        assert is_mapping_computed(sync(clinic))
        yield clinic


def sync(clinic: SyncedOrganization, *, full: bool = False) -> dg.ExecuteInProcessResult:
    """Let an hour pass, then sync."""
    clinic.clock.advance(hours=1)
    return clinic.sync(full=full)


def change(clinic: SyncedOrganization, resource: str, number: int, **changes: Any) -> None:
    record = list(clinic.account.records[resource].values())[number]
    clinic.put(resource, dict(record) | changes, clinic.clock.now + timedelta(minutes=1))


def is_mapping_computed(result: dg.ExecuteInProcessResult) -> bool:
    return materializations_of(result)["contact_mapping"]["computed_again"]


def kept(result: dg.ExecuteInProcessResult) -> list[bool]:
    """Return for each check that may keep its result whether it kept its earlier result.

    Assert that all checks pass.
    """
    evaluations = result.get_asset_check_evaluations()
    assert all(each.passed for each in evaluations)
    by_name = {each.check_name: each for each in evaluations}
    return [by_name[name].metadata[REUSED].value for name in KEPT_CHECKS]


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


def test_unchanged_sync_keeps_mapping_counts_and_checks(clinic: SyncedOrganization) -> None:
    """A full sync computes, counts and checks everything."""
    sync(clinic)
    with recorded_statements(clinic) as statements:
        result = sync(clinic)
    assert not is_mapping_computed(result)
    assert kept(result) == [True, True, True]
    assert [each for each in statements if any(text in each for text in LARGE)] == []
    assert len(statements) < 185

    with recorded_statements(clinic) as statements:
        result = sync(clinic, full=True)
    assert is_mapping_computed(result)
    assert kept(result) == [False, False, False]
    assert all(any(text in each for each in statements) for text in LARGE)


def test_changed_records_are_computed_checked_and_counted(clinic: SyncedOrganization) -> None:
    change(clinic, "individual_appointments", 3, cancelled_at="2026-06-15T09:00:00Z")
    result = sync(clinic)
    assert not is_mapping_computed(result)
    assert kept(result) == [True, True, True]

    change(clinic, "patients", 3, email="new@clinic.example")
    change(clinic, "patients", 0, id="77", created_at="2026-06-15T12:31:00Z")
    result = sync(clinic)
    assert is_mapping_computed(result)
    # The materialization still has the numbers of the mapping.
    assert kept(result) == [False, True, True]
    metadata = materializations_of(result)
    for name in ("patients", "appointments"):
        assert metadata[f"cliniko/{name}"]["dagster/row_count"] == len(clinic.rows(f"cliniko.{name}"))
    assert metadata["cliniko/patients"]["dagster/row_count"] == 101
    assert not is_mapping_computed(sync(clinic))


@pytest.mark.slow
def test_mapping_materialized_alone_is_computed(clinic: SyncedOrganization) -> None:
    result = clinic.pipeline.materialize(clinic.id, "contact_mapping")
    assert result.success
    assert is_mapping_computed(result)
    assert not is_mapping_computed(sync(clinic))
