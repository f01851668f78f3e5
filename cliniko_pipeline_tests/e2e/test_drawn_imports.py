"""Tests of drawn accounts with imports.

An import creates up to 500 records in the same clock second. Their order changes with each request.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import URL

from cliniko_pipeline.cliniko.exchange.throttle import BudgetRegistry
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.faults import Faults, RefusedField
from cliniko_pipeline.sandbox.server import Sandbox
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.history_runs import Requests
from cliniko_pipeline_tests.support.hostile_accounts import (
    attendee,
    contact,
    group_appointment,
    individual_appointment,
    patient,
)
from cliniko_pipeline_tests.support.independent import expected_active_patients, expected_contact_mapping
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, SkippedTime, opened_pipeline
from cliniko_pipeline_tests.support.properties import THOROUGH
from cliniko_pipeline_tests.support.synced_organizations import (
    CRAWLED,
    START,
    TABLES,
    ManualClock,
    SyncedOrganization,
    cliniko_text,
    wire_records,
)

FAULTS = Faults(server_error_rate=0.04, reset_before_body_rate=0.03, reset_in_body_rate=0.03)
SORT, FILTER = RefusedField("id", "sort"), RefusedField("id", "filter")
# An example takes seconds. It is not shrunk, because shrinking runs several syncs per attempt and takes minutes.
BUDGET = settings(
    max_examples=34,
    phases=[Phase.explicit, Phase.reuse, Phase.generate] if THOROUGH else [Phase.explicit],
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True)
class Import:
    """Numbers of records of a resource.

    `size` records are created in one clock second; the others follow one per second.
    """

    size: int
    before: int
    after: int


@dataclass(frozen=True)
class Clinic:
    """An account, its changes between two requests of a crawl, and the faults of Cliniko.

    An item of `during` has the number of the next request, the resource, and "delete", "change" or "add".
    """

    imports: dict[str, Import]
    changed: int
    during: tuple[tuple[int, str, str], ...]
    is_silent: bool
    has_faults: bool
    seed: int


few = st.builds(Import, st.integers(5, 40), st.integers(0, 5), st.integers(0, 5))
many = st.builds(Import, st.integers(150, 500), st.integers(0, 99), st.integers(0, 99))
during = st.tuples(st.integers(2, 16), st.sampled_from(CRAWLED), st.sampled_from(["delete", "change", "add"]))
clinics = st.builds(
    Clinic,
    st.sets(st.sampled_from(CRAWLED), min_size=2, max_size=2).flatmap(
        lambda large: st.fixed_dictionaries({each: many if each in large else few for each in CRAWLED})
    ),
    st.integers(100, 300),
    st.lists(during, max_size=8).map(tuple),
    st.booleans(),
    st.booleans(),
    st.integers(0, 1000),
)

# This clinic is synced in every run of the tests. It changes between the requests of both kinds of crawl.
CHANGING = Clinic(
    {
        "patients": Import(310, 30, 60),
        "individual_appointments": Import(230, 50, 10),
        "group_appointments": Import(8, 2, 2),
        "attendees": Import(20, 0, 3),
    },
    changed=120,
    during=(
        (4, "patients", "delete"),
        (6, "patients", "change"),
        (7, "patients", "add"),
        (11, "individual_appointments", "delete"),
        (13, "group_appointments", "add"),
    ),
    is_silent=False,
    has_faults=True,
    seed=7,
)


@dataclass
class World:
    pipeline: PipelineUnderTest
    sandbox: Sandbox
    clock: ManualClock
    requests: Requests


@pytest.fixture
def world(database_url: URL, tmp_path: Path) -> Iterator[World]:
    clock, requests = ManualClock(), Requests()
    # The limit is off, because even a few deleted records are a large share of these small accounts.
    environ = environment(database_url, tmp_path) | {"CLINIKO_VANISHED_SHARE_LIMIT": "1"}
    with opened_pipeline(environ, waits=SkippedTime()) as pipeline:
        pipeline.runtime._budgets = BudgetRegistry(lambda _digest: requests)
        with pipeline.sandbox([], clock=clock) as sandbox:
            yield World(pipeline, sandbox, clock, requests)


class ImportedOrganization(SyncedOrganization):
    """An organization with imports. Records that are deleted in Cliniko stay stored until a full sync misses them."""

    gone: dict[tuple[str, str], dict[str, Any]]

    def begin(self) -> None:
        self.gone, self.made = {}, 0

    def create(self, resource: str) -> None:
        self.made += 1
        record_id = str(900_000 + self.made)
        at = cliniko_text(self.clock.now)
        self.put(resource, new_record(resource, record_id, self.made, at, created_at=at))

    def change(self, resource: str, number: int) -> None:
        """Change records with odd ids. Deleted records have even ids, so they stay as they were stored."""
        for record_id in [each for each in sorted(self.account.records[resource], key=int) if int(each) % 2][:number]:
            record = self.account.get(resource, record_id) or {}
            at = cliniko_text(self.clock.now)
            changes = {
                "patients": {"archived_at": None if record.get("archived_at") else at},
                "group_appointments": {"starts_at": cliniko_text(START - timedelta(days=5))},
            }
            self.put(resource, record | changes.get(resource, {"cancelled_at": at}))

    def delete(self, resource: str, number: int = 1) -> None:
        even = [each for each in sorted(self.account.records[resource], key=int) if not int(each) % 2]
        for record_id in even[1 : number + 1]:
            self.gone[resource, record_id] = self.account.get(resource, record_id) or {}
            self.account.delete(resource, record_id)

    def assert_exact(self, *, is_settled: bool = False) -> None:
        """Compare the stored ids with the account, and the derived tables with the independent computation.

        If `is_settled`, all records deleted in Cliniko must be marked as deleted.
        """
        wire = wire_records(self.account)
        for resource, (table, kind) in TABLES.items():
            rows = [row for row in self.rows(table) if kind.items() <= row.items()]
            live = {row["id"] for row in rows if row["vanished_at"] is None}
            gone = {record_id: record for (of, record_id), record in self.gone.items() if of == resource}
            gone = {record_id: gone[record_id] for record_id in gone.keys() & {row["id"] for row in rows}}
            assert live == {str(record["id"]) for record in wire[resource]} | (live & gone.keys())
            assert not is_settled or not live & gone.keys()
            # A record that a full sync has missed is treated as deleted.
            wire[resource] += [
                record if record_id in live else record | {"deleted_at": record["created_at"]}
                for record_id, record in gone.items()
            ]
        assert self.pipeline.contact_mapping(self.id) == expected_contact_mapping(wire, self.contacts, self.id)
        active = expected_active_patients(wire, self.contacts, self.id, self.as_of)
        assert self.pipeline.active_patients(self.id) == active


def new_record(resource: str, record_id: str, number: int, at: str, **changes: Any) -> dict[str, Any]:
    """Make a record that counts. Attendees belong to one of the first few bookings."""
    starts = cliniko_text(START - timedelta(days=3))
    times = {"created_at": at, "updated_at": at, **changes}
    match resource:
        case "patients":
            return patient(record_id, "Ann", f"Lee {record_id}", **times)
        case "individual_appointments":
            return individual_appointment(record_id, str(1001 + number // 2), starts, **times)
        case "group_appointments":
            return group_appointment(record_id, starts, **times)
        case _:
            return attendee(record_id, str(3001 + number % 5), str(1001 + number // 2), **times)


def imported(resource: str, group: Import) -> Iterator[dict[str, Any]]:
    first = 1 + 1000 * (1 + CRAWLED.index(resource))
    before, after = range(group.before), range(group.before + 1, group.before + 1 + group.after)
    seconds = [*before, *[group.before] * group.size, *after]
    for number, second in enumerate(seconds):
        at = cliniko_text(START - timedelta(days=90) + timedelta(seconds=second))
        yield new_record(resource, str(first + number), number, at)


@contextmanager
def opened(world: World, clinic: Clinic, refused: Sequence[RefusedField]) -> Iterator[ImportedOrganization]:
    """Serve the account as a new organization, with a new Dagster instance."""
    name = f"org-{uuid4().hex}"
    records = {resource: list(imported(resource, group)) for resource, group in clinic.imports.items()}
    account = Account.from_records(name, "au4", f"{name}-au4", records)
    world.sandbox.add(account)
    fields = tuple(replace(each, silently=clinic.is_silent) for each in refused)
    faults = FAULTS if clinic.has_faults else Faults()
    world.sandbox.faults = replace(faults, refused_fields=fields, seed=clinic.seed)
    contacts = [
        contact(number, name, cliniko_patient_id=str(1000 + number)) | {"id": uuid4()} for number in range(1, 700)
    ]
    with dg.DagsterInstance.ephemeral() as instance:
        pipeline = PipelineUnderTest(world.pipeline.runtime, instance)
        organization = ImportedOrganization(pipeline, world.sandbox, account, contacts, name, world.clock)
        organization.begin()
        yield organization


def sync_during_changes(world: World, clinic: Clinic, organization: ImportedOrganization, *, full: bool) -> None:
    """Sync while the account changes. Then sync again to read the changes that the first sync missed."""

    def before_each(number: int) -> None:
        for at, resource, what in clinic.during:
            if at == number:
                world.clock.advance(seconds=1)
                match what:
                    case "delete":
                        organization.delete(resource)
                    case "change":
                        organization.change(resource, 30)
                    case _:
                        organization.create(resource)

    world.requests.sent, world.requests.before_each = 0, before_each
    organization.sync(full=full)
    world.requests.before_each = lambda _number: None
    if clinic.during:
        world.clock.advance(minutes=10)
        organization.sync()


@pytest.mark.parametrize(
    "refused",
    [
        # Nothing is read again in order of ids, which test_unstable_order.py tests in the quick tests.
        pytest.param((), id="accepted", marks=pytest.mark.slow),
        pytest.param((SORT,), id="sorting refused"),
        pytest.param((SORT, FILTER), id="sorting and filtering refused"),
    ],
)
@given(clinic=clinics)
@example(CHANGING)
@BUDGET
def test_drawn_imports_are_synced_exactly(world: World, refused: tuple[RefusedField, ...], clinic: Clinic) -> None:
    with opened(world, clinic, refused) as organization:
        sync_during_changes(world, clinic, organization, full=False)
        organization.assert_exact()

        world.clock.advance(hours=1)
        for resource in CRAWLED:
            organization.change(resource, clinic.changed)
        organization.create("individual_appointments")
        world.clock.advance(hours=1)
        organization.sync()
        organization.assert_exact()

        for resource in ("patients", "individual_appointments"):
            organization.delete(resource)
        world.clock.advance(hours=1)
        sync_during_changes(world, clinic, organization, full=True)
        organization.assert_exact()
        world.clock.advance(hours=1)
        organization.sync(full=True)
        organization.assert_exact(is_settled=True)
