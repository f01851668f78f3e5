"""Tests of pages that Cliniko fails to serve, over the sandbox."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from cliniko_pipeline.cliniko.client import ClinikoClient
from cliniko_pipeline.cliniko.crawling.page_parts import SIZES, split_page
from cliniko_pipeline.cliniko.exchange.sender import Access, RequestOptions
from cliniko_pipeline.cliniko.records import PATIENTS, UNANSWERED, RejectedRecord
from cliniko_pipeline.errors import ClinikoUnavailableError, UnexpectedResponseError
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.faults import BrokenRecord, Faults, RefusedField
from cliniko_pipeline.sandbox.server import Sandbox, running_sandbox
from cliniko_pipeline_tests.support.budgets import SlidingWindowBudget
from cliniko_pipeline_tests.support.hostile_accounts import patient

KEY = "Y2xpbmlj-au4"
IDS = [str(number) for number in range(1000, 1460)]


@pytest.fixture
def served() -> Iterator[Sandbox]:
    records = {"patients": [patient(id_, "Ann", "Lee") for id_ in IDS]}
    with running_sandbox([Account.from_records("clinic", "au4", KEY, records)]) as sandbox:
        yield sandbox


@contextmanager
def client_of(served: Sandbox, **options: int) -> Iterator[ClinikoClient]:
    budget = SlidingWindowBudget(10_000)
    url = served.base_url("clinic")
    access = Access(KEY, url, "tests (ops@example.com)")
    with ClinikoClient("surf-rehab", access, budget, options=RequestOptions(sleep=_none, **options)) as client:
        yield client


def crawled(served: Sandbox, **options: int) -> list[str]:
    """Return the ids that a crawl yields. Assert that the crawl rejects nothing."""
    ids, rejected = read(served, **options)
    assert rejected == []
    return ids


def read(served: Sandbox, **options: int) -> tuple[list[str], list[RejectedRecord]]:
    """Return the ids that a crawl yields, and the records that it rejects."""
    with client_of(served, **options) as client:
        pages = list(client.crawl(PATIENTS))
    return [record.id for page in pages for record in page.records], [one for page in pages for one in page.rejected]


def _none(_seconds: float) -> None:
    pass


@pytest.mark.parametrize("largest", [50, 25, 5, 1])
@pytest.mark.parametrize("record_id", ["1000", "1099", "1100", "1237", "1459"])
def test_page_that_is_not_answered_is_read_in_smaller_ones(served: Sandbox, largest: int, record_id: str) -> None:
    served.faults = Faults(broken_records=(BrokenRecord("patients", record_id, largest_page=largest),))
    assert sorted(crawled(served)) == IDS
    # The pages, an earlier attempt with pages in flight, six failed attempts, and a few requests for the parts.
    assert served.counters.requests() <= 5 + 8 + 6 + 1 + 2 * len(SIZES) + 2 + 2 + 5 + 5


def test_stretch_of_pages_is_read_in_smaller_ones(served: Sandbox) -> None:
    broken = tuple(BrokenRecord("patients", id_, largest_page=25) for id_ in IDS[90:330:7])
    served.faults = Faults(broken_records=broken)
    assert sorted(crawled(served)) == IDS


def test_unsorted_records_of_smaller_pages_are_not_lost(served: Sandbox) -> None:
    """All records were created in the same second, so naive parts of a page would lose some of them."""
    served.faults = Faults(
        broken_records=(BrokenRecord("patients", "1237", largest_page=50),),
        refused_fields=(RefusedField("id", "sort"),),
    )
    with suppress(UnexpectedResponseError):
        assert set(crawled(served)) == set(IDS)


@pytest.mark.parametrize(
    ("record_id", "stands"),
    [
        ("1000", "record 1, before 1001 created at 2025-06-01T08:00:00Z"),
        ("1237", "record 238, after 1236 created at 2025-06-01T08:00:00Z, before 1238 created at 2025-06-01T08:00:00Z"),
        ("1459", "record 460, after 1458 created at 2025-06-01T08:00:00Z"),
    ],
)
def test_unreadable_record_is_rejected_with_its_place(served: Sandbox, record_id: str, stands: str) -> None:
    served.faults = Faults(broken_records=(BrokenRecord("patients", record_id),))
    ids, rejected = read(served)
    assert sorted(ids) == [id_ for id_ in IDS if id_ != record_id]
    assert rejected == [RejectedRecord("patients", None, f"{UNANSWERED} ({stands})")]


@pytest.mark.parametrize("page", [1, 2])
def test_unreadable_page_is_rejected_record_by_record(served: Sandbox, page: int) -> None:
    for number, id_ in enumerate(IDS):
        at = f"2025-06-01T08:{number // 60:02}:{number % 60:02}Z"
        served.accounts["clinic"].put("patients", patient(id_, created_at=at))
    places = range(100 * page - 99, 100 * page + 1)
    served.faults = Faults(broken_records=tuple(BrokenRecord("patients", IDS[place - 1]) for place in places))
    ids, rejected = read(served)
    assert set(ids) == {id_ for place, id_ in enumerate(IDS, 1) if place not in places}
    assert [record.reason for record in rejected] == [f"{UNANSWERED} (record {place})" for place in places]


def test_unreadable_first_record_hinders_no_count(served: Sandbox) -> None:
    served.faults = Faults(broken_records=(BrokenRecord("patients", "1000"),))
    with client_of(served) as client:
        assert client.total_entries(PATIENTS) == len(IDS)
        client.validate()


def test_outage_is_no_unreadable_record(served: Sandbox) -> None:
    served.faults = Faults(server_error_rate=1.0, server_error_statuses=(504,))
    with pytest.raises(ClinikoUnavailableError) as caught:
        crawled(served, max_pages_in_flight=1)
    assert type(caught.value) is ClinikoUnavailableError
    assert "patients, page 1: given up after 6 attempts (6 answers 504)" in str(caught.value)
    assert served.counters.requests() == 6 + 2 + 2


def test_parts_have_one_end_with_the_page() -> None:
    """Whatever fails, the parts cover the page exactly once, in the order of the list."""

    def ask(number: int, size: int) -> range:
        if size > 1 and 237 in range((number - 1) * size, number * size):
            raise ClinikoUnavailableError("not answered")
        return range((number - 1) * size, number * size)

    parts = split_page(ask, 200, 300)
    assert [entry for part in parts for entry in part] == list(range(200, 300))
    assert {len(part) for part in parts} == set(SIZES)
