"""Tests of crawls of a list that changes between requests, with interruptions and several pages in flight."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from unittest.mock import patch

import httpx
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from cliniko_pipeline.cliniko.crawling.crawl import crawl_pages
from cliniko_pipeline.cliniko.crawling.listing import Listing
from cliniko_pipeline.cliniko.decoding.pages import FetchedPage
from cliniko_pipeline.cliniko.records import PATIENTS, Patient
from cliniko_pipeline_tests.support.properties import examples
from cliniko_pipeline_tests.support.simulated_lists import (
    API,
    PAGE,
    START,
    Account,
    AnswerOrder,
    Change,
    Outcome,
    crawl,
)


@pytest.fixture(autouse=True, scope="module")
def small_pages() -> Iterator[None]:
    with patch.object(Listing, "page_size", PAGE):
        yield


SETTLED = START - 121
"""Latest second that is too early for new records, even if the server's clock has been set back."""

# Most defects appear at the front of the list, when one record or a page of records changes.
places, sizes = st.integers(0, 2 * PAGE) | st.integers(0, 10**6), st.integers(1, 2 * PAGE + 1)
ticks = st.sampled_from([("clock", 0, 1), ("clock", 0, 5)])


def changes_of(*kinds: str, most: int = 4) -> st.SearchStrategy[list[Change]]:
    return st.lists(st.tuples(st.sampled_from(kinds), places, sizes) | ticks, max_size=most)


any_changes = changes_of("insert", "update", "delete")
inserts = changes_of("insert")
deletions = changes_of("delete", most=3)
clock_set_back = st.tuples(st.just("clock"), st.just(0), st.integers(-90, 10))


@st.composite
def accounts(draw: st.DrawFn, newest: int = START - 1, oldest: int = 1) -> Account:
    """Draw an account of up to ten pages, with many records in the same clock second."""
    account = Account()
    number = draw(st.integers(0, 10 * PAGE))
    seconds = sorted({oldest, oldest + 1, 50, 99, newest} - set(range(oldest)))
    for created in sorted(draw(st.lists(st.sampled_from(seconds), min_size=number, max_size=number))):
        account.add(created, draw(st.sampled_from([created, max(created, 60), newest])))
    return account


sinces = st.none() | st.sampled_from([0, 51, 60, 90, START, START + 5])
interruptions = st.lists(st.booleans(), max_size=8)
answers = st.lists(st.tuples(st.booleans(), st.integers(-8, 8)), max_size=60) | st.just([(False, -1)] * 200)
orders = st.builds(AnswerOrder, in_flight=st.integers(2, 8), answers=answers.map(tuple))
one_at_a_time = st.just(AnswerOrder(1, ()))
budget = settings(max_examples=examples(40, 300), suppress_health_check=[HealthCheck.too_slow])


def required(outcome: Outcome, account: Account, since: int | None) -> set[int]:
    """Return the records that the crawl must yield.

    They exist during the whole crawl, and an incremental crawl may miss changed ones.
    """
    return outcome.at_first & account.records.keys() - (account.changed if since is not None else set())


def pages_of(outcome: Outcome) -> int:
    return max(1, -(-len(outcome.at_first) // PAGE))


@given(accounts(START), sinces, st.lists(any_changes, max_size=30), interruptions, one_at_a_time | orders)
@budget
def test_changing_list_loses_no_record(account, since, changes, breaks, order):
    # In a growing list, an insert and a deletion between the same two requests hide each other. The next crawl reads
    # the hidden records, which are as new as this crawl.
    older = {one.id for one in account.records.values() if (one.created if since is None else one.updated) < START}
    outcome = crawl(account, since, changes, breaks, order)
    assert required(outcome, account, since) & older <= outcome.yielded
    assert outcome.yielded <= set(range(1, account.made + 1))
    event(f"{outcome.requests - pages_of(outcome)} requests more than pages")


@given(accounts(START) | accounts(START + 120), sinces, st.lists(inserts | deletions, max_size=6), interruptions)
@budget
def test_records_with_times_in_the_future_are_read(account, since, changes, breaks):
    """Records have times in the future if the server's clock was ahead and then set back."""
    outcome = crawl(account, since, changes, breaks)
    assert required(outcome, account, since) <= outcome.yielded


@given(accounts(SETTLED), sinces, st.lists(any_changes, max_size=12), interruptions)
@budget
def test_any_changes_cost_at_most_two_extra_requests(account, since, changes, breaks):
    """Only the first page and the newest records cost extra requests, if changes come two minutes after the start."""
    later = [[("clock", 0, 121), *(changes[0] if changes else [])], *changes[1:]]
    outcome = crawl(account, since, later, breaks)
    assert required(outcome, account, since) <= outcome.yielded
    assert outcome.requests <= pages_of(outcome) + 2 + 2 * outcome.interruptions


@given(st.data(), accounts(SETTLED), sinces, interruptions, one_at_a_time | orders)
@budget
def test_list_that_loses_nothing_costs_one_request_a_page(data, account, since, breaks, order):
    """An update moves a record out of an incremental crawl, but not out of a full crawl, so it is allowed there."""
    changes = data.draw(st.lists(inserts if since is not None else changes_of("insert", "update"), max_size=30))
    # A resumed crawl reads one page again, and another page if it was interrupted within the records of a clock second.
    outcome = crawl(account, since, changes, breaks if order.in_flight == 1 else (), order)
    assert required(outcome, account, since) <= outcome.yielded
    assert pages_of(outcome) <= outcome.requests <= pages_of(outcome) + 2 * outcome.interruptions


@given(
    accounts() | accounts(START - 1, 98),
    sinces,
    st.lists(
        st.lists(clock_set_back | st.tuples(st.just("insert"), places, sizes), max_size=3) | deletions, max_size=8
    ),
)
@budget
def test_server_clock_set_back_hides_no_record(account, since, changes):
    # An insert and a deletion between the same two pages hide each other, so none happens while records of a clock
    # second are read.
    outcome = crawl(account, since, changes, changes_within_groups=False)
    assert required(outcome, account, since) <= outcome.yielded


@given(accounts(SETTLED), sinces, st.integers(0, 8), interruptions)
@budget
def test_crawl_of_an_emptied_list_ends(account, since, emptied_after, breaks):
    changes: list[list[Change]] = [[] for _ in range(emptied_after)] + [[("delete", 0, 10**6)]]
    outcome = crawl(account, since, changes, breaks)
    # One more request finds that the list is empty, and two more read the first page and the newest records.
    assert outcome.requests <= min(pages_of(outcome), emptied_after + 2) + 2 + 2 * outcome.interruptions


@given(accounts(SETTLED), st.lists(deletions, max_size=30), orders)
@budget
def test_deletion_repeats_at_most_the_pages_in_flight(account, changes, order):
    outcome = crawl(account, None, changes, order=order)
    assert required(outcome, account, None) <= outcome.yielded
    deletions = sum(any(kind == "delete" for kind, *_ in step) for step in changes)
    # A deletion repeats the pages in flight, the pages that were held back, and the page itself.
    assert outcome.requests <= pages_of(outcome) + 2 + deletions * (2 * order.in_flight + 1)


def of_one_second(number: int) -> Account:
    account = Account()
    for _ in range(number):
        account.add(START - 1, START - 1)
    return account


@pytest.mark.parametrize(
    ("is_counted_first", "torn"), [(False, 2), (False, 4), (False, 7), (True, 3), (True, 5), (True, 7)]
)
@pytest.mark.parametrize("deleted", [1, 3 * PAGE + 1, 7 * PAGE])
def test_deletion_within_an_answer_loses_no_record(deleted, is_counted_first, torn):
    """Cliniko selects a page and counts the list in two statements, between which a record may disappear."""
    account = of_one_second(7 * PAGE)
    all_ids = set(account.records)

    def begin(url: str, number: int) -> Callable[[], FetchedPage[Patient]]:
        def answer() -> FetchedPage[Patient]:
            return account.answer(httpx.URL(url))

        def answer_after_deletion() -> FetchedPage[Patient]:
            account.records.pop(deleted, None)
            return answer()

        early = answer()
        if number == torn and is_counted_first:
            return lambda: combined(answer_after_deletion(), early)
        if number == torn:
            counted = answer_after_deletion()
            return lambda: combined(early, counted)
        return (lambda: early) if is_counted_first else answer

    yielded = {int(one.id) for page in crawl_pages(Listing(API, PATIENTS), begin) for one in page.records}
    assert all_ids - {deleted} <= yielded


def combined(selected: FetchedPage[Patient], counted: FetchedPage[Patient]) -> FetchedPage[Patient]:
    return replace(selected, total_entries=counted.total_entries, next_url=counted.next_url)


FRONT = [("clock", 0, -50), ("insert", 0, PAGE)]
BACK = [("clock", 0, -1), ("insert", 0, 2 * PAGE)]
NOTHING: list[Change] = []


@pytest.mark.parametrize(
    ("changes", "breaks"),
    [
        pytest.param([[("delete", 0, 1)]], [], id="deleted before the last page is read"),
        pytest.param([[("delete", 0, 1)]], [False, True], id="deleted, then interrupted"),
        pytest.param([NOTHING, NOTHING, [("delete", 0, PAGE)]], [], id="deleted last"),
        pytest.param([NOTHING, FRONT], [], id="added in front"),
        pytest.param([NOTHING, FRONT, NOTHING, [("delete", 0, PAGE + 1)]], [], id="added in front, then deleted"),
        pytest.param(
            [[("delete", 0, 1)], NOTHING, NOTHING, BACK],
            [False, False, False, True],
            id="deleted, interrupted before the first page, then added behind",
        ),
    ],
)
def test_record_that_moves_to_another_page_is_read(changes, breaks):
    account = of_one_second(4 * PAGE)
    outcome = crawl(account, None, changes, breaks)
    assert required(outcome, account, None) <= outcome.yielded


@pytest.mark.parametrize("since", [None, 0])
@pytest.mark.parametrize("gap", range(4))
@pytest.mark.parametrize("broken_off", [False, True])
def test_deletion_hidden_by_an_addition_loses_no_record(since, gap, broken_off):
    """The server's clock was set back, so the addition is older than the start of the crawl.

    The total does not change.
    """
    account = Account()
    for _ in range(4 * PAGE):
        account.add(1, 1)
    changes = [*[NOTHING] * gap, [("clock", 0, -60), ("delete", 0, 1), ("insert", 0, 1)]]
    outcome = crawl(account, since, changes, [*[False] * gap, broken_off])
    assert required(outcome, account, since) <= outcome.yielded


@pytest.mark.parametrize("in_flight", [2, 8])
@pytest.mark.parametrize("every", [1, 3])
def test_repeated_deletions_at_most_double_the_requests(in_flight, every):
    """The server responds to the last request in flight first."""
    account = of_one_second(60 * PAGE)
    changes = [[("delete", 0, 1)] if number % every == 0 else NOTHING for number in range(PAGE * 40)]
    outcome = crawl(account, None, changes, order=AnswerOrder(in_flight, ((False, -1),) * 1000))
    assert required(outcome, account, None) <= outcome.yielded
    assert outcome.requests <= 2 * 60 + 2


@pytest.mark.parametrize("since", [None, 0])
def test_crawl_ends_while_records_are_added_faster(since):
    account = of_one_second(4 * PAGE)
    account.add(START + 60, START + 60)
    import_in_progress = [[("clock", 0, 1), ("insert", 0, 3 * PAGE)] for _ in range(1000)]
    outcome = crawl(account, since, import_in_progress)
    assert set(range(1, 4 * PAGE + 1)) <= outcome.yielded
    assert outcome.requests < 100
