"""An organization of a pipeline under test, with its account on a sandbox, contacts and expected rows."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

import dagster as dg

from cliniko_pipeline.postgres.operator_tables import sync_runs
from cliniko_pipeline.postgres.operator_tables.organizations import Organization
from cliniko_pipeline.problems import problems
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.accounts.demo import DemoOrganization, demo_organizations
from cliniko_pipeline.sandbox.server import Sandbox
from cliniko_pipeline_tests.support.hostile_accounts import cliniko_text, contact, individual_appointment, patient
from cliniko_pipeline_tests.support.independent import expected_active_patients, expected_contact_mapping
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, errors_of

START = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
CRAWLED = ("patients", "individual_appointments", "group_appointments", "attendees")
NAMES = ("appointment_types", "practitioners")
RESOURCES = (*CRAWLED, *NAMES)
TABLES = {
    "patients": ("cliniko.patients", {}),
    "individual_appointments": ("cliniko.appointments", {"kind": "individual"}),
    "group_appointments": ("cliniko.appointments", {"kind": "group"}),
    "attendees": ("cliniko.attendees", {}),
}
"""The table of a resource, and the columns that select its rows."""


def wire_records(account: Account) -> dict[str, list[dict[str, Any]]]:
    """Return all records of the account as the sandbox serves them."""
    return {name: account.wire_records(name, "http://sandbox/v1") for name in RESOURCES}


class ManualClock:
    """A sandbox's clock that moves only when the test moves it."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now.timestamp()

    def advance(self, **duration: float) -> None:
        self.now += timedelta(**duration)


class SyncedOrganization:
    """An organization whose account may change between syncs. `as_of` is the clock's time at the last sync."""

    def __init__(
        self,
        pipeline: PipelineUnderTest,
        sandbox: Sandbox,
        account: Account,
        contacts: Iterable[Mapping[str, Any]],
        organization_id: str,
        clock: ManualClock,
    ) -> None:
        self.pipeline = pipeline
        self.sandbox = sandbox
        self.account = account
        self.contacts = [dict(contact) for contact in contacts]
        self.id = organization_id
        self.clock = clock
        self.as_of = clock.now
        pipeline.add_organization(self.id, sandbox, account)
        pipeline.add_contacts(self.contacts)

    def put(self, resource: str, record: Mapping[str, Any], at: datetime | str | None = None) -> None:
        """Add or replace the record. It is changed at the given instant, by default now."""
        changed_at = at if isinstance(at, str) else cliniko_text(at or self.clock.now)
        self.account.put(resource, {**record, "updated_at": changed_at})

    def run(self, *, full: bool = False) -> dg.ExecuteInProcessResult:
        """Sync and return the result, which may be a failure."""
        self.as_of = self.clock.now
        return self.pipeline.sync(self.id, self.as_of, full=full)

    def sync(self, *, full: bool = False) -> dg.ExecuteInProcessResult:
        """Sync. Assert that the sync succeeds."""
        result = self.run(full=full)
        assert result.success, errors_of(result)
        return result

    def fail(self, *, full: bool = False) -> str:
        """Sync. Assert that the sync fails, and return its errors."""
        result = self.run(full=full)
        assert not result.success
        return "\n".join(errors_of(result))

    def rows(self, table: str) -> list[dict[str, Any]]:
        return self.pipeline.rows(self.id, table)

    def problems(self) -> str:
        """Return the organization's problems, as `status` shows them."""
        return " ".join(problems(Organization(self.id, self.id, True, None, None, None, []), self.last_run()))

    def last_run(self) -> sync_runs.OrganizationStatus:
        with self.pipeline.database.organization(self.id) as connection:
            return sync_runs.organization_status(connection)

    def assert_right(self) -> None:
        """Compare the mapping and active_patients with the independent computation."""
        wire = wire_records(self.account)
        assert self.pipeline.contact_mapping(self.id) == expected_contact_mapping(wire, self.contacts, self.id)
        active = expected_active_patients(wire, self.contacts, self.id, self.as_of)
        assert self.pipeline.active_patients(self.id) == active


@contextmanager
def synced_organization(
    pipeline: PipelineUnderTest, account: Account, contacts: Iterable[Mapping[str, Any]] = (), name: str = "clinic"
) -> Iterator[SyncedOrganization]:
    """Serve the account on a sandbox and store its organization. The caller runs the first sync."""
    clock = ManualClock()
    with pipeline.sandbox([account], clock=clock) as sandbox:
        yield SyncedOrganization(pipeline, sandbox, account, contacts, name, clock)


@contextmanager
def synced_numbers(
    pipeline: PipelineUnderTest, patients: int, starts_at: str, **times: str
) -> Iterator[SyncedOrganization]:
    """Make an organization whose patients have an appointment and a contact each. The caller runs the first sync.

    Patients are numbered from 1000, appointments from 10000. `times` are fields of all these records.
    """
    numbers = range(1000, 1000 + patients)
    records: dict[str, list[dict[str, Any]]] = {resource: [] for resource in RESOURCES}
    records["patients"] = [patient(str(number), "Ann", f"Lee {number}", **times) for number in numbers]
    records["individual_appointments"] = [
        individual_appointment(str(number + 9000), str(number), starts_at, **times) for number in numbers
    ]
    account = Account.from_records("clinic", "au4", "Y2xpbmlj-au4", records)
    contacts = [contact(number, "clinic", cliniko_patient_id=str(number)) for number in numbers]
    with synced_organization(pipeline, account, contacts) as organization:
        yield organization


@contextmanager
def synced_demo(pipeline: PipelineUnderTest, name: str = "old-mill-physio") -> Iterator[SyncedOrganization]:
    """Make an organization with a copy of the demo account."""
    demo = _demos()[name]
    records = {resource: list(found.values()) for resource, found in demo.account.records.items()}
    account = Account.from_records(demo.account.name, demo.account.shard, demo.account.api_key, records)
    with synced_organization(pipeline, account, demo_contacts(demo), name) as organization:
        yield organization


def demo_contacts(demo: DemoOrganization) -> list[dict[str, Any]]:
    """Return the demo organization's contacts, with UUIDs as ids."""
    return [{**contact, "id": UUID(contact["id"])} for contact in demo.contacts]


@cache
def _demos() -> dict[str, DemoOrganization]:
    return {demo.id: demo for demo in demo_organizations(START)}
