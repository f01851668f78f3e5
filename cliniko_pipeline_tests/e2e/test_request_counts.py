"""Tests of the requests of a sync, which the sandbox counts. Cliniko allows 200 a minute per API key."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres.writing.crawls import OVERLAP
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.accounts.generated import GENERATED_KEY
from cliniko_pipeline.sync_options import SyncOptions
from cliniko_pipeline_tests.support import hostile_accounts as hostile
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, opened_pipeline
from cliniko_pipeline_tests.support.sync_processes import SyncProcesses, home_with_files
from cliniko_pipeline_tests.support.synced_organizations import (
    CRAWLED,
    NAMES,
    START,
    TABLES,
    SyncedOrganization,
    cliniko_text,
    synced_organization,
    wire_records,
)

PAGE = 100
SHOWN = ("starts_at", "cancelled_at", "archived_at", "deleted_at", "merged_at")
UNCHANGED = dict.fromkeys(CRAWLED, 1)

Requests = Counter[str]


class CountedClinic:
    """An organization whose requests are counted.

    Its clock moves only between syncs, by more than the overlap of incremental crawls.
    """

    def __init__(self, organization: SyncedOrganization) -> None:
        self.organization = organization
        self.account = organization.account

    def later(self) -> str:
        """Advance the clock. Return an instant in between, which only the next sync reads."""
        clock = self.organization.clock
        changed_at = cliniko_text(clock.now + timedelta(minutes=1))
        clock.now += OVERLAP + timedelta(minutes=2)
        return changed_at

    def sync(self, *, full: bool = False) -> Requests:
        """Sync. Return the number of requests by resource."""
        with self.counted() as requests:
            self.organization.sync(full=full)
        return requests

    @contextmanager
    def counted(self) -> Iterator[Requests]:
        requests: Requests = Counter()
        counters = self.organization.sandbox.counters
        counters.clear()
        yield requests
        for resource in (*CRAWLED, *NAMES):
            if number := counters.requests(resource=resource):
                requests[resource] = number
        assert requests.total() == counters.requests()

    def assert_right(self) -> None:
        self.organization.as_of = self.organization.clock.now
        self.organization.assert_right()
        wire = wire_records(self.account)
        for resource, (table, kind) in TABLES.items():
            rows = {row["id"]: _shown(row) for row in self.organization.rows(table) if kind.items() <= row.items()}
            assert rows == {record["id"]: _shown(record) for record in wire[resource]}, resource


@contextmanager
def counted_clinic(pipeline: PipelineUnderTest, account: Account) -> Iterator[CountedClinic]:
    contacts = [
        hostile.contact(number, "clinic", cliniko_patient_id=record["id"])
        for number, record in enumerate(account.records["patients"].values())
        if number % 3 == 0 and number < 1000
    ]
    with synced_organization(pipeline, account, contacts) as organization:
        yield CountedClinic(organization)


def _shown(record: dict[str, Any]) -> dict[str, datetime]:
    texts = {field: record.get(field) for field in SHOWN}
    return {field: datetime.fromisoformat(str(value)) for field, value in texts.items() if value}


def account_of(size: int, *, groups: bool) -> Account:
    """Return an account with `size` records of every resource.

    Without groups, attendees belong to individual appointments.
    """
    starts = [cliniko_text(START + timedelta(hours=7 - 9 * (number % 300))) for number in range(size)]
    created = [cliniko_text(START - timedelta(days=90) + timedelta(seconds=number)) for number in range(size)]
    site = {
        "appointment_type": hostile.link("appointment_types", 1),
        "practitioner": hostile.link("practitioners", 1),
    }
    kind = 2 if groups else 1
    records: dict[str, list[Any]] = {
        "patients": [hostile.patient(f"{n}", f"First {n}", "Last", f"{n}@example.org") for n in range(size)],
        "individual_appointments": [
            hostile.individual_appointment(f"1{n:06}", f"{n // 2}", starts[n], created_at=created[n], **site)
            for n in range(size)
        ],
        "group_appointments": [hostile.group_appointment(f"2{n:06}", starts[n], **site) for n in range(size) if groups],
        "attendees": [hostile.attendee(f"3{n:06}", f"{kind}{n:06}", f"{n // 3}") for n in range(size)],
        "appointment_types": [hostile.appointment_type("1", "Consultation")],
        "practitioners": [hostile.practitioner("1", display_name="Dr Ray")],
    }
    return Account.from_records(f"clinic of {size}", "au5", GENERATED_KEY, records)


def pages_of(account: Account, resources: tuple[str, ...] = (*CRAWLED, *NAMES)) -> Requests:
    """Return the number of requests by resource if each page is read exactly once."""
    return Counter({each: max(1, math.ceil(len(account.records[each]) / PAGE)) for each in resources})


@pytest.mark.parametrize(("size", "groups"), [(0, False), (101, False), (101, True)])
def test_unchanged_account_costs_one_request_a_resource(pipeline: PipelineUnderTest, size: int, groups: bool) -> None:
    """Attendees are read only if there are groups."""
    read = CRAWLED if groups else CRAWLED[:3]
    with counted_clinic(pipeline, account_of(size, groups=groups)) as clinic:
        assert clinic.sync() == pages_of(clinic.account, read + NAMES)
        clinic.later()
        assert clinic.sync() == dict.fromkeys(read, 1)


def test_full_sync_costs_each_page_once(pipeline: PipelineUnderTest) -> None:
    with counted_clinic(pipeline, account_of(PAGE, groups=True)) as clinic:
        for full in (False, True):
            assert clinic.sync(full=full) == pages_of(clinic.account)
            clinic.later()
        assert clinic.sync() == UNCHANGED
        clinic.assert_right()


Change = Callable[[dict[str, Any], str], dict[str, Any]]


def _now(field: str) -> Change:
    return lambda record, at: record | {field: at}


def _with(**changes: Any) -> Change:
    return lambda record, _at: record | changes


def _merged(record: dict[str, Any], at: str) -> dict[str, Any]:
    return record | {"merged_at": at, "archived_at": at, "merged_with_patient": hostile.link("patients", 359)}


def _rescheduled(record: dict[str, Any], at: str) -> dict[str, Any]:
    starts = datetime.fromisoformat(record["starts_at"]) + timedelta(days=7, minutes=15)
    return record | {"starts_at": cliniko_text(starts)}


CHANGES: dict[str, tuple[Change, ...]] = {
    "patients": (_now("archived_at"), _with(archived_at=None), _merged, _now("deleted_at")),
    "individual_appointments": (
        _now("cancelled_at"),
        _rescheduled,
        _with(cancelled_at=None, deleted_at=None),
        _now("deleted_at"),
        _with(patient=hostile.link("patients", 358)),
    ),
    "group_appointments": (_rescheduled, _now("archived_at"), _now("deleted_at")),
    "attendees": (
        _now("cancelled_at"),
        lambda record, at: record | {"id": f"9{record['id']}{at[14:16]}", "created_at": at, "cancelled_at": None},
        _with(patient=hostile.link("patients", 358)),
        _with(booking=hostile.link("bookings", "2000003")),
    ),
}
NUMBERS = (1, 99, 100, 101, 350)


@pytest.mark.parametrize("turns", [range(2), pytest.param(range(2, 7), marks=pytest.mark.slow)])
def test_changed_records_cost_one_request_a_page(pipeline: PipelineUnderTest, turns: range) -> None:
    with counted_clinic(pipeline, account_of(360, groups=True)) as clinic:
        clinic.sync()
        for turn in turns:
            numbers = {each: NUMBERS[(turn + place) % len(NUMBERS)] for place, each in enumerate(CRAWLED)}
            at = clinic.later()
            for resource, number in numbers.items():
                changes = CHANGES[resource]
                for place in range(number):
                    # The oldest attendees are changed repeatedly, and the later attendees are not.
                    record = clinic.account.get(resource, _id_of(resource, place))
                    assert record is not None
                    changed = changes[(place + turn) % len(changes)](record, at)
                    clinic.account.put(resource, changed | {"updated_at": at})
            assert clinic.sync() == {each: math.ceil(number / PAGE) for each, number in numbers.items()}, numbers
            clinic.assert_right()


def _id_of(resource: str, number: int) -> str:
    return f"{number}" if resource == "patients" else f"{CRAWLED.index(resource)}{number:06}"


@pytest.mark.slow
def test_first_group_costs_the_request_for_attendees(pipeline: PipelineUnderTest) -> None:
    """From then on, attendees are read. Many changed attendees cost no requests for other resources."""
    with counted_clinic(pipeline, account_of(120, groups=False)) as clinic:
        clinic.sync()
        at = clinic.later()
        group = hostile.group_appointment("5000000", cliniko_text(START), created_at=at, updated_at=at)
        clinic.account.put("group_appointments", group)
        clinic.account.put("attendees", hostile.attendee("6", "5000000", "7", created_at=at, updated_at=at))
        assert clinic.sync() == UNCHANGED
        assert [row["id"] for row in clinic.organization.rows("cliniko.attendees")] == ["6"]
        at = clinic.later()
        for number in range(110):
            attendee = hostile.attendee(f"9{number}", "5000000", number, created_at=at, updated_at=at)
            clinic.account.put("attendees", attendee)
        assert clinic.sync() == {**UNCHANGED, "attendees": 2}
        clinic.later()
        assert clinic.sync() == UNCHANGED


@pytest.mark.slow
def test_new_name_costs_one_request_once(pipeline: PipelineUnderTest) -> None:
    """A new appointment type or practitioner is read when the first appointment refers to it."""
    with counted_clinic(pipeline, account_of(10, groups=True)) as clinic:
        clinic.sync()

        def booked(number: int, kind: int, practitioner: int) -> Requests:
            at = clinic.later()
            site = {
                "appointment_type": hostile.link("appointment_types", kind),
                "practitioner": hostile.link("practitioners", practitioner),
            }
            record = hostile.individual_appointment(
                f"{number}", "1", cliniko_text(START), created_at=at, updated_at=at, **site
            )
            clinic.account.put("individual_appointments", record)
            return clinic.sync()

        for number in ("2", "3"):
            clinic.account.put("appointment_types", hostile.appointment_type(number, f"Type {number}"))
            clinic.account.put("practitioners", hostile.practitioner(number, display_name=f"Dr {number}"))
        assert clinic.sync() == UNCHANGED
        # The list has all names, even names that no appointment has yet.
        assert booked(1, kind=2, practitioner=1) == {**UNCHANGED, "appointment_types": 1}
        assert booked(2, kind=3, practitioner=2) == {**UNCHANGED, "practitioners": 1}
        clinic.assert_right()
        # Cliniko has no such appointment type.
        assert booked(3, kind=4, practitioner=3) == {**UNCHANGED, "appointment_types": 1}
        assert booked(4, kind=4, practitioner=3) == UNCHANGED
        clinic.assert_right()


@pytest.fixture(scope="module")
def processes() -> Iterator[SyncProcesses]:
    with SyncProcesses() as processes:
        yield processes


@pytest.mark.parametrize("killed_at", [1, 3, 5, 6, 7, 10, 11, 12])
def test_killed_crawl_resumes_at_the_last_commit(
    processes: SyncProcesses, database_url: URL, tmp_path: Path, killed_at: int
) -> None:
    """At a page per second, a batch has five pages.

    A kill loses the pages after the last batch, and an unwritten batch.
    """
    pages = 12
    environ = environment(database_url, home_with_files(tmp_path))
    run = partial(processes.run, environ, "clinic", SyncOptions(START), seconds_a_page=1.0)
    with (
        opened_pipeline(environ) as pipeline,
        counted_clinic(pipeline, account_of(pages * PAGE, groups=False)) as clinic,
    ):
        # Two pages of names are read first.
        assert run(kill_at_page=2 + killed_at).signal is not None
        crawls = {row["resource"]: row for row in clinic.organization.rows("cliniko.crawls")}
        crawl = crawls["individual_appointments"]
        stored = crawl["records"] // PAGE
        assert (crawl["records"], crawl["completed_at"]) == (stored * PAGE, None)
        handed_over = (killed_at - 1) // 5 * 5
        assert stored in (handed_over, max(0, handed_over - 5))
        with clinic.counted() as requests:
            assert run().succeeded
        # The page of the checkpoint is read again, and one more crawl asks for changes.
        again = 2 if stored else 0
        assert requests["individual_appointments"] <= pages - stored + again + 1
        stored_ids = {row["id"] for row in clinic.organization.rows("cliniko.appointments")}
        assert stored_ids == set(clinic.account.records["individual_appointments"])
