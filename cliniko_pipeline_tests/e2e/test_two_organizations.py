"""Tests of two organizations that have the same records and sync at the same time. Neither affects the other."""

import threading
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import dagster as dg
import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.sandbox.accounts.account import Account as ServedAccount
from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline.sandbox.server import Sandbox
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.hostile_accounts import ORGANIZATION, Account, hand_written_account
from cliniko_pipeline_tests.support.independent import expected_active_patients, expected_contact_mapping
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, errors_of, opened_pipeline

AS_OF = hand_written_account().as_of
REFUSED = "is not complete: materialize"


@dataclass
class Twins:
    """Two organizations with the same patients and contacts (names, e-mail addresses, patient ids).

    Only their appointments differ.
    """

    pipeline: PipelineUnderTest
    sandbox: Sandbox
    accounts: dict[str, Account]
    contacts: list[dict[str, Any]]

    def assert_right(self, organization_id: str) -> None:
        records = self.accounts[organization_id].records
        mapping = expected_contact_mapping(records, self.contacts, organization_id)
        active = expected_active_patients(records, self.contacts, organization_id, AS_OF)
        assert self.pipeline.contact_mapping(organization_id) == mapping
        assert self.pipeline.active_patients(organization_id) == active
        assert active

    def contents(self) -> dict[str, Any]:
        return {organization_id: self.pipeline.contents(organization_id) for organization_id in self.accounts}

    def delete_everything(self) -> None:
        for organization_id in self.accounts:
            organizations.delete_tenant_rows(self.pipeline.database, organization_id)


@pytest.fixture
def twins(database_url: URL, tmp_path: Path) -> Iterator[Twins]:
    first = hand_written_account()
    accounts = {"twin-one": first, "twin-two": with_other_appointments(first)}
    contacts = [
        contact | {"id": UUID(int=contact["id"].int + 1000 * number), "organization_id": organization_id}
        for number, organization_id in enumerate(accounts)
        for contact in first.contacts
        if contact["organization_id"] == ORGANIZATION
    ]
    served = {
        name: ServedAccount.from_records(name, "au4", f"{name}-key-au4", account.records)
        for name, account in accounts.items()
    }
    with opened_pipeline(environment(database_url, tmp_path)) as pipeline, pipeline.sandbox(served.values()) as sandbox:
        for name, account in served.items():
            pipeline.add_organization(name, sandbox, account)
        pipeline.add_contacts(contacts)
        yield Twins(pipeline, sandbox, accounts, contacts)


def with_other_appointments(account: Account) -> Account:
    records = deepcopy(dict(account.records))
    for resource, field in (("individual_appointments", "cancelled_at"), ("attendees", "cancelled_at")):
        for record in records[resource][::2]:
            record[field] = "2025-08-01T00:00:00Z"
    for record in records["patients"][::5]:
        record["archived_at"] = "2025-08-01T00:00:00Z"
    return replace(account, records=records)


def run_together(*tasks: Callable[[], Any]) -> list[Any]:
    """Run the tasks in threads that start together. Return their results."""
    barrier = threading.Barrier(len(tasks))
    results: dict[int, Any] = {}

    def run(number: int, task: Callable[[], Any]) -> None:
        barrier.wait()
        results[number] = task()

    threads = [threading.Thread(target=run, args=each) for each in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[number] for number in range(len(tasks))]


def sync_on_its_own_instance(twins: Twins, organization_id: str) -> tuple[bool, Sequence[str]]:
    with dg.DagsterInstance.ephemeral() as instance:
        result = PipelineUnderTest(twins.pipeline.runtime, instance).sync(organization_id, AS_OF)
        return result.success, errors_of(result)


def alone(twins: Twins) -> dict[str, Any]:
    for organization_id in twins.accounts:
        success, errors = sync_on_its_own_instance(twins, organization_id)
        assert success, errors
        twins.assert_right(organization_id)
    return twins.contents()


def test_twins_synced_in_threads_get_their_own_tables(twins: Twins) -> None:
    expected = alone(twins)
    assert expected["twin-one"] != expected["twin-two"]
    twins.sandbox.faults = Faults(latency_ms=2, jitter_ms=8)
    twins.delete_everything()
    one, two = run_together(*(lambda name=name: sync_on_its_own_instance(twins, name) for name in twins.accounts))
    assert one == (True, [])
    assert two == (True, [])
    assert twins.contents() == expected


@pytest.mark.slow
def test_two_runs_of_one_organization_leave_the_right_tables(twins: Twins) -> None:
    """At least one run succeeds. The other run may be refused, because the first is not complete."""
    expected = alone(twins)
    twins.sandbox.faults = Faults(latency_ms=2, jitter_ms=20)
    for is_first in (True, False, True, False):
        if is_first:
            twins.delete_everything()
        results = run_together(*[lambda: sync_on_its_own_instance(twins, "twin-one")] * 2)
        assert any(success for success, _ in results), results
        for success, errors in results:
            assert success or all(REFUSED in error for error in errors), errors
        twins.assert_right("twin-one")
        assert twins.contents()["twin-one"] == expected["twin-one"]
