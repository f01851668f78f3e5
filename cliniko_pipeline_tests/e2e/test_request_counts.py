"""What a sync costs: requests, as the sandbox counts them. They are scarce: two hundred a minute for each clinic."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres.crawls import OVERLAP
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.sandbox.generated import GENERATED_KEY, generated_account
from cliniko_pipeline.sandbox.server import Sandbox
from cliniko_pipeline.sync_options import SyncOptions
from cliniko_pipeline_tests.support import hostile_accounts as hostile
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.independent import expected_active_patients, expected_contact_mapping
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, errors_of, opened_pipeline
from cliniko_pipeline_tests.support.sync_processes import SyncProcesses, home_with_files

START = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
PAGE = 100
ID = "clinic"
CRAWLED = ("patients", "individual_appointments", "group_appointments", "attendees")
NAMES = ("appointment_types", "practitioners")
TABLES = {
    "patients": ("cliniko.patients", {}),
    "individual_appointments": ("cliniko.appointments", {"kind": "individual"}),
    "group_appointments": ("cliniko.appointments", {"kind": "group"}),
    "attendees": ("cliniko.attendees", {}),
}
SHOWN = ("starts_at", "cancelled_at", "archived_at", "deleted_at", "merged_at")

Requests = Counter[str]


class Clinic:
    """One organization whose Cliniko has a clock that moves only between syncs, by more than they overlap."""

    def __init__(self, pipeline: PipelineUnderTest, account: Account) -> None:
        self.pipeline = pipeline
        self.account = account
        self.now = START
        self.contacts = [
            hostile.contact(number, ID, cliniko_patient_id=record["id"])
            for number, record in enumerate(account.records["patients"].values())
            if number % 3 == 0 and number < 1000
        ]
        self.sandbox: Sandbox

    @classmethod
    @contextmanager
    def opened(cls, pipeline: PipelineUnderTest, account: Account) -> Iterator["Clinic"]:
        clinic = cls(pipeline, account)
        with pipeline.sandbox([account], clock=clinic.clock) as clinic.sandbox:
            pipeline.add_organization(ID, clinic.sandbox, account)
            pipeline.add_contacts(clinic.contacts)
            yield clinic

    def clock(self) -> float:
        return self.now.timestamp()

    def later(self) -> str:
        """Lets time pass, and gives an instant of it that the next sync reads and no sync after that."""
        changed_at = _text(self.now + timedelta(minutes=1))
        self.now += OVERLAP + timedelta(minutes=2)
        return changed_at

    def sync(self, *, full: bool = False) -> Requests:
        """The requests it took, by resource."""
        with self.counted() as requests:
            result = self.pipeline.sync(ID, self.now, full=full)
        assert result.success, errors_of(result)
        return requests

    @contextmanager
    def counted(self) -> Iterator[Requests]:
        requests: Requests = Counter()
        self.sandbox.counters.clear()
        yield requests
        assert self.sandbox.counters.requests() == self.sandbox.counters.requests(status=200)
        for resource in (*CRAWLED, *NAMES):
            if number := self.sandbox.counters.requests(resource=resource):
                requests[resource] = number
        assert requests.total() == self.sandbox.counters.requests()

    def assert_right(self) -> None:
        wire = {name: self.account.wire_records(name, "http://sandbox/v1") for name in (*CRAWLED, *NAMES)}
        assert self.pipeline.contact_mapping(ID) == expected_contact_mapping(wire, self.contacts, ID)
        assert self.pipeline.active_patients(ID) == expected_active_patients(wire, self.contacts, ID, self.now)
        for resource, (table, kind) in TABLES.items():
            rows = {row["id"]: _shown(row) for row in self.pipeline.rows(ID, table) if kind.items() <= row.items()}
            assert rows == {record["id"]: _shown(record) for record in wire[resource]}, resource


def _shown(record: dict[str, Any]) -> dict[str, datetime]:
    texts = {field: record.get(field) for field in SHOWN}
    return {field: datetime.fromisoformat(str(value)) for field, value in texts.items() if value}


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def account_of(size: int, *, groups: bool) -> Account:
    """So many records of every resource, changed long ago; without groups each attendee has an individual one."""
    starts = [_text(START + timedelta(hours=7 - 9 * (number % 300))) for number in range(size)]
    site = {
        "appointment_type": hostile.link("appointment_types", 1),
        "practitioner": hostile.link("practitioners", 1),
    }
    kind = 2 if groups else 1
    records: dict[str, list[Any]] = {
        "patients": [hostile.patient(f"{n}", f"First {n}", "Last", f"{n}@example.org") for n in range(size)],
        "individual_appointments": [
            hostile.individual_appointment(f"1{n:06}", f"{n // 2}", starts[n], **site) for n in range(size)
        ],
        "group_appointments": [hostile.group_appointment(f"2{n:06}", starts[n], **site) for n in range(size) if groups],
        "attendees": [hostile.attendee(f"3{n:06}", f"{kind}{n:06}", f"{n // 3}") for n in range(size)],
        "appointment_types": [hostile.appointment_type("1", "Consultation")],
        "practitioners": [hostile.practitioner("1", display_name="Dr Ray")],
    }
    return Account.from_records(f"clinic of {size}", "au5", GENERATED_KEY, records)


def pages_of(account: Account, resources: tuple[str, ...] = (*CRAWLED, *NAMES)) -> Requests:
    """The requests that reading everything takes, each page once."""
    return Counter({each: max(1, math.ceil(len(account.records[each]) / PAGE)) for each in resources})


# --- Nothing has changed ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "groups"), [(0, False), *((size, groups) for size in (1, 100, 101, 2500) for groups in (True, False))]
)
def test_with_nothing_changed_a_sync_takes_four_requests_whatever_the_size_of_the_account(
    pipeline: PipelineUnderTest, size: int, groups: bool
) -> None:
    read = CRAWLED if groups else CRAWLED[:3]
    with Clinic.opened(pipeline, account_of(size, groups=groups)) as clinic:
        assert clinic.sync() == pages_of(clinic.account, read + NAMES)
        clinic.later()
        assert clinic.sync() == dict.fromkeys(read, 1)
        clinic.assert_right() if read == CRAWLED else None
        if size == PAGE:
            clinic.later()
            assert clinic.sync(full=True) == pages_of(clinic.account, read + NAMES)
            clinic.later()
            assert clinic.sync() == dict.fromkeys(read, 1)


# --- Some records have changed ----------------------------------------------------------------------------

Change = Callable[[dict[str, Any], str], dict[str, Any]]


def _now(field: str) -> Change:
    return lambda record, at: record | {field: at}


def _with(**changes: Any) -> Change:
    return lambda record, _at: record | changes


def _merged(record: dict[str, Any], at: str) -> dict[str, Any]:
    return record | {"merged_at": at, "archived_at": at, "merged_with_patient": hostile.link("patients", 359)}


def _rescheduled(record: dict[str, Any], at: str) -> dict[str, Any]:
    starts = datetime.fromisoformat(record["starts_at"]) + timedelta(days=7, minutes=15)
    return record | {"starts_at": _text(starts)}


CHANGES: dict[str, tuple[Change, ...]] = {
    "patients": (
        lambda record, at: record | {"first_name": f"Another {at}", "email": f"new-{record['email']}"},
        _now("archived_at"),
        _with(archived_at=None),
        _merged,
        _now("deleted_at"),
    ),
    "individual_appointments": (
        _now("cancelled_at"),
        _rescheduled,
        _now("archived_at"),
        _with(cancelled_at=None, archived_at=None, deleted_at=None),
        _now("deleted_at"),
        _with(patient=hostile.link("patients", 358)),
        _with(did_not_arrive=True),
    ),
    "group_appointments": (_rescheduled, _now("archived_at"), _now("deleted_at"), _rescheduled),
    "attendees": (
        _now("cancelled_at"),
        lambda record, at: record | {"id": f"9{record['id']}{at[14:16]}", "created_at": at, "cancelled_at": None},
        _now("archived_at"),
        _with(patient=hostile.link("patients", 358)),
        _now("deleted_at"),
        _with(booking=hostile.link("bookings", "2000003")),
    ),
}
NUMBERS = (1, 99, 100, 101, 350)


def test_changed_records_cost_one_request_for_each_hundred_of_a_resource_and_are_right_afterwards(
    pipeline: PipelineUnderTest,
) -> None:
    with Clinic.opened(pipeline, account_of(360, groups=True)) as clinic:
        clinic.sync()
        for turn in range(len(NUMBERS)):
            numbers = {each: NUMBERS[(turn + place) % len(NUMBERS)] for place, each in enumerate(CRAWLED)}
            at = clinic.later()
            for resource, number in numbers.items():
                changes = CHANGES[resource]
                for place in range(number):
                    # The oldest attendees are changed again and again, those added between are not.
                    record = clinic.account.get(resource, _id_of(resource, place))
                    assert record is not None
                    changed = changes[(place + turn) % len(changes)](record, at)
                    clinic.account.put(resource, changed | {"updated_at": at})
            assert clinic.sync() == {each: math.ceil(number / PAGE) for each, number in numbers.items()}, numbers
            clinic.assert_right()
        clinic.later()
        assert clinic.sync() == dict.fromkeys(CRAWLED, 1)


def _id_of(resource: str, number: int) -> str:
    return f"{number}" if resource == "patients" else f"{CRAWLED.index(resource)}{number:06}"


def test_the_changes_of_one_resource_cost_nothing_of_another(pipeline: PipelineUnderTest) -> None:
    with Clinic.opened(pipeline, account_of(210, groups=True)) as clinic:
        clinic.sync()
        at = clinic.later()
        # A class that nobody touches, and two hundred and ten more who take part in it.
        for number in range(210):
            place = hostile.attendee(f"9{number}", "2000001", number, created_at=at, updated_at=at)
            clinic.account.put("attendees", place)
        assert clinic.sync() == {**dict.fromkeys(CRAWLED, 1), "attendees": 3}
        clinic.assert_right()


# --- Names ------------------------------------------------------------------------------------------------


def test_a_new_appointment_type_or_practitioner_costs_one_more_request_once(pipeline: PipelineUnderTest) -> None:
    with Clinic.opened(pipeline, account_of(10, groups=True)) as clinic:
        clinic.sync()
        nothing_new = dict.fromkeys(CRAWLED, 1)

        def booked(number: int, kind: int, practitioner: int) -> Requests:
            at = clinic.later()
            site = {
                "appointment_type": hostile.link("appointment_types", kind),
                "practitioner": hostile.link("practitioners", practitioner),
            }
            record = hostile.individual_appointment(
                f"{number}", "1", _text(START), created_at=at, updated_at=at, **site
            )
            clinic.account.put("individual_appointments", record)
            return clinic.sync()

        clinic.account.put("appointment_types", hostile.appointment_type("2", "Another type"))
        clinic.account.put("practitioners", hostile.practitioner("2", display_name="Dr Another"))
        assert clinic.sync() == nothing_new
        assert booked(1, kind=2, practitioner=1) == {**nothing_new, "appointment_types": 1}
        assert booked(2, kind=2, practitioner=1) == nothing_new
        assert booked(3, kind=2, practitioner=2) == {**nothing_new, "practitioners": 1}
        clinic.account.put("appointment_types", hostile.appointment_type("3", "A third type"))
        clinic.account.put("practitioners", hostile.practitioner("3", display_name="Dr Third"))
        assert booked(4, kind=3, practitioner=3) == {**nothing_new, "appointment_types": 1, "practitioners": 1}
        clinic.assert_right()
        # One that Cliniko has no name for.
        assert booked(5, kind=4, practitioner=3) == {**nothing_new, "appointment_types": 1}
        assert booked(6, kind=4, practitioner=3) == nothing_new
        clinic.later()
        assert clinic.sync() == nothing_new
        clinic.assert_right()


def test_the_first_class_of_an_account_costs_the_request_for_attendees_from_then_on(
    pipeline: PipelineUnderTest,
) -> None:
    with Clinic.opened(pipeline, account_of(250, groups=False)) as clinic:
        clinic.sync()
        at = clinic.later()
        group = hostile.group_appointment("5000000", _text(START), created_at=at, updated_at=at)
        clinic.account.put("group_appointments", group)
        clinic.account.put("attendees", hostile.attendee("6", "5000000", "7", created_at=at, updated_at=at))
        assert clinic.sync() == dict.fromkeys(CRAWLED, 1)
        assert [row["id"] for row in pipeline.rows(ID, "cliniko.attendees")] == ["6"]
        clinic.later()
        assert clinic.sync() == dict.fromkeys(CRAWLED, 1)


# --- Killed again and again -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes() -> Iterator[SyncProcesses]:
    with SyncProcesses() as processes:
        yield processes


def test_a_sync_that_is_killed_when_it_has_read_a_page_has_stored_all_pages_before_but_the_one_being_written(
    processes: SyncProcesses, database_url: URL, tmp_path: Path
) -> None:
    environ = environment(database_url, home_with_files(tmp_path))
    with (
        opened_pipeline(environ) as pipeline,
        Clinic.opened(pipeline, account_of(500, groups=False)) as clinic,
    ):
        # The names of both kinds, and three pages of individual appointments.
        assert processes.run(environ, ID, SyncOptions(clinic.now), kill_at_page=2 + 3).signal is not None
        (crawl,) = (row for row in pipeline.rows(ID, "cliniko.crawls") if row["resource"] == "individual_appointments")
        stored = crawl["records"] // PAGE
        assert stored in (1, 2)
        assert (crawl["records"], crawl["completed_at"]) == (stored * PAGE, None)
        with clinic.counted() as requests:
            assert processes.run(environ, ID, SyncOptions(clinic.now)).succeeded
        assert requests == {"patients": 5, "individual_appointments": 5 - stored + 1, "group_appointments": 1}


def test_a_crawl_killed_again_and_again_costs_at_most_a_twentieth_more_be_it_the_first_or_a_full_one(
    processes: SyncProcesses, database_url: URL, tmp_path: Path
) -> None:
    environ = environment(database_url, home_with_files(tmp_path))
    account = generated_account(1_000, 20_000, 7, START - timedelta(days=1), group_share=0.01)
    pages = pages_of(account)
    assert sum(len(each) for each in account.records.values()) > 40_000

    with opened_pipeline(environ) as pipeline, Clinic.opened(pipeline, account) as clinic:

        def taken_up(kill_at_pages: Sequence[int], *, full: bool = False) -> Requests:
            """The requests of all attempts together; all after the first are as if nothing had happened."""
            options = SyncOptions(clinic.now, full)
            with clinic.counted() as requests:
                for page in kill_at_pages:
                    assert processes.run(environ, ID, options, kill_at_page=page).signal is not None
                    options = SyncOptions(clinic.now)
                assert processes.run(environ, ID, options).succeeded
            return requests

        first = taken_up([70] * 5)
        assert pages.total() < first.total() <= pages.total() * 1.05, first
        assert len(pipeline.rows(ID, "cliniko.attendees")) == len(account.records["attendees"])

        clinic.later()
        # In the attendees, which are read last.
        full = taken_up([pages.total() - 150, 100], full=True)
        assert pages.total() - pages["patients"] < full.total() <= pages.total() * 1.05, full
        clinic.assert_right()
