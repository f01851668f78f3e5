"""Pages that Cliniko does not answer, over the sandbox."""

from collections.abc import Iterator

import pytest

from cliniko_pipeline.cliniko import PATIENTS, ClinikoClient
from cliniko_pipeline.cliniko.small_pages import SIZES, read_in_parts
from cliniko_pipeline.errors import ClinikoUnavailableError, UnexpectedResponseError, UnreadableRecordError
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.sandbox.faults import BrokenPage, BrokenRecord, Faults, RefusedField
from cliniko_pipeline.sandbox.server import Sandbox, running_sandbox
from cliniko_pipeline_tests.support.budgets import SlidingWindowBudget
from cliniko_pipeline_tests.support.hostile_accounts import patient

KEY = "Y2xpbmlj-au4"
IDS = [str(number) for number in range(1000, 1460)]


@pytest.fixture
def served() -> Iterator[Sandbox]:
    records = {"patients": [patient(each, "Ann", "Lee") for each in IDS]}
    with running_sandbox([Account.from_records("clinic", "au4", KEY, records)]) as sandbox:
        yield sandbox


def crawled(served: Sandbox, **options: int) -> list[str]:
    """Return the ids that a crawl yields."""
    budget = SlidingWindowBudget(10_000)
    url = served.base_url("clinic")
    with ClinikoClient("surf-rehab", KEY, url, "tests (ops@example.com)", budget, sleep=_none, **options) as client:
        return [record.id for page in client.crawl(PATIENTS) for record in page.records]


def _none(_seconds: float) -> None:
    pass


@pytest.mark.parametrize("largest", [50, 25, 5, 1])
@pytest.mark.parametrize("record_id", ["1000", "1099", "1100", "1237", "1459"])
def test_page_that_is_not_answered_is_read_in_smaller_ones(served: Sandbox, largest: int, record_id: str) -> None:
    served.faults = Faults(broken_records=(BrokenRecord("patients", record_id, largest_page=largest),))
    assert sorted(crawled(served)) == IDS
    # One for each page, those of an attempt ahead, six in vain, and few for the parts.
    assert served.counters.requests() <= 5 + 8 + 6 + 1 + 2 * len(SIZES) + 2 + 2 + 5 + 5


def test_stretch_of_pages_is_read_in_smaller_ones(served: Sandbox) -> None:
    broken = tuple(BrokenRecord("patients", each, largest_page=25) for each in IDS[90:330:7])
    served.faults = Faults(broken_records=broken)
    assert sorted(crawled(served)) == IDS


def test_unsorted_records_of_smaller_pages_are_not_lost(served: Sandbox) -> None:
    """All were created in one second, and parts of a page would lose some of them."""
    served.faults = Faults(
        broken_records=(BrokenRecord("patients", "1237", largest_page=50),),
        refused_fields=(RefusedField("id", "sort"),),
    )
    with pytest.raises((ClinikoUnavailableError, UnexpectedResponseError)):
        crawled(served)


@pytest.mark.parametrize(("record_id", "place"), [("1100", 101), ("1237", 238), ("1459", 460)])
def test_unreadable_record_is_named_by_its_place(served: Sandbox, record_id: str, place: int) -> None:
    served.faults = Faults(broken_records=(BrokenRecord("patients", record_id),))
    with pytest.raises(UnreadableRecordError) as caught:
        crawled(served)
    message = str(caught.value)
    assert f"patients, page {(place + 99) // 100}, record {place}: given up after 6 attempts (6 answers 504)" in message
    assert "nothing was marked as deleted" in message
    assert record_id not in message


def test_outage_is_no_unreadable_record(served: Sandbox) -> None:
    served.faults = Faults(server_error_rate=1.0, server_error_statuses=(504,))
    with pytest.raises(ClinikoUnavailableError) as caught:
        crawled(served, most_at_once=1)
    assert type(caught.value) is ClinikoUnavailableError
    assert "patients, page 1: given up after 6 attempts (6 answers 504)" in str(caught.value)
    assert served.counters.requests() == 6 + 2


def test_broken_first_record_counts_as_an_outage(served: Sandbox) -> None:
    served.faults = Faults(broken_pages=(BrokenPage("patients", 1),))
    with pytest.raises(ClinikoUnavailableError, match="patients, page 1: given up after 6 attempts"):
        crawled(served)


def test_parts_have_one_end_with_the_page() -> None:
    """Whatever fails, the parts cover the page once, in the list's order."""

    def ask(number: int, size: int) -> range:
        if size > 1 and 237 in range((number - 1) * size, number * size):
            raise ClinikoUnavailableError("not answered")
        return range((number - 1) * size, number * size)

    parts = read_in_parts(ask, 200, 300)
    assert [entry for part in parts for entry in part] == list(range(200, 300))
    assert {len(part) for part in parts} == set(SIZES)
