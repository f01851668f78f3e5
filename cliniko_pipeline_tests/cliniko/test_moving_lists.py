"""Crawls of a list in which anything may happen between two requests, and in which a crawl may break off anywhere.

The list is simulated by what is published of Cliniko's: offsets into live data in order of creation. Pages hold four
records instead of a hundred, so that few records make many pages and every event falls upon a boundary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

import httpx
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from cliniko_pipeline.cliniko import pagination
from cliniko_pipeline.cliniko.decoding import DecodedPage
from cliniko_pipeline.cliniko.pagination import FetchedPage, Listing, Page, Position, crawl_pages
from cliniko_pipeline.cliniko.records import PATIENTS, Patient
from cliniko_pipeline_tests.support.properties import examples

API = "https://api.au4.cliniko.com/v1"
EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
START = 100
PAGE = 4
MOST_REQUESTS = 1000


@pytest.fixture(autouse=True, scope="module")
def small_pages() -> Iterator[None]:
    # Every wait is a long one: as many pages as may be are asked for at once.
    with patch.object(pagination, "PAGE_SIZE", PAGE), patch.object(pagination, "LONG_WAIT_SECONDS", -1.0):
        yield


@dataclass(frozen=True)
class Kept:
    id: int
    created: int
    updated: int


@dataclass
class Account:
    """The records and the clock, in whole seconds, of a Cliniko that a crawl reads."""

    records: dict[int, Kept] = field(default_factory=dict)
    now: int = START
    made: int = 0
    requests: int = 0
    changed: set[int] = field(default_factory=set)

    def add(self, created: int, updated: int) -> None:
        self.made += 1
        self.records[self.made] = Kept(self.made, created, updated)

    def touch(self, id_: int) -> None:
        self.records[id_] = replace(self.records[id_], updated=self.now)
        self.changed.add(id_)

    def listed(self, *conditions: str) -> list[Kept]:
        kept = sorted(self.records.values(), key=lambda one: (one.created, one.id))
        return [one for one in kept if all(_holds(one, condition) for condition in conditions)]

    def answer(self, url: httpx.URL) -> FetchedPage[Patient]:
        self.requests += 1
        assert self.requests <= MOST_REQUESTS
        assert [url.params[name] for name in ("sort", "order")] == ["created_at", "asc"]
        listed = self.listed(*(one for one in url.params.get_list("q[]") if one != "archived_at:*"))
        page = int(url.params["page"])
        shown = [Patient(str(one.id), _at(one.created), _at(one.updated)) for one in listed[(page - 1) * PAGE :][:PAGE]]
        following = str(url.copy_set_param("page", str(page + 1))) if page * PAGE < len(listed) else None
        return FetchedPage(DecodedPage(shown, [], len(listed), following), _at(self.now))


def _at(second: int) -> datetime:
    return EPOCH + timedelta(seconds=second)


def _holds(one: Kept, condition: str) -> bool:
    name, _, comparison = condition.partition(":")
    value = {"created_at": one.created, "updated_at": one.updated}[name]
    sign = comparison.rstrip("Z:T-0123456789")
    bound = (datetime.fromisoformat(comparison.removeprefix(sign)) - EPOCH).total_seconds()
    return {">=": value >= bound, "<=": value <= bound, "<": value < bound}[sign]


Event = tuple[str, int, int]


def happen(account: Account, what: Event) -> None:
    """Let one thing happen. Its two numbers say to which record (by its place in the list) and how much."""
    kind, place, size = what
    ids = [one.id for one in account.listed()]
    here = place % max(1, len(ids))
    match kind:
        case "insert":
            for _ in range(size):
                account.add(account.now, account.now)
        case "update":
            for id_ in ids[here:][:size]:
                account.touch(id_)
        case "delete":
            for id_ in ids[here:][:size]:
                del account.records[id_]
        case "clock":
            account.now += size


@dataclass
class Outcome:
    at_first: set[int]
    yielded: set[int]
    requests: int
    breaks: int
    horizon: int


def crawl(
    account: Account,
    since: int | None,
    happens: Callable[[], None],
    breaks: Iterator[bool],
    ahead: "Ahead | None" = None,
) -> Outcome:
    """Crawl the account, letting something happen before every request but the first, and breaking off now and then.

    One page at a time, unless `ahead` says how those asked for together are answered.
    """
    listing = Listing(API, PATIENTS, None if since is None else _at(since))
    own = [] if since is None else [f"updated_at:>={_at(since).isoformat().removesuffix('+00:00')}Z"]
    outcome = Outcome({one.id for one in account.listed(*own)}, set(), 0, 0, account.now)

    def answer(url: str) -> FetchedPage[Patient]:
        if account.requests:
            happens()
        return account.answer(httpx.URL(url))

    def begun(position: Position | None = None) -> Iterator[Page[Patient]]:
        # What was asked for when a crawl broke off is never heard of again.
        server = Unordered(answer, ahead or Ahead(1, ()))
        return crawl_pages(listing, server.begin, position, at_once=server.ahead.at_once)

    pages, broken_off = begun(), True
    while broken_off:
        broken_off = False
        for page in pages:
            outcome.yielded |= {int(record.id) for record in page.records}
            if page.following is not None and next(breaks, False):
                pages, broken_off = begun(page.following), True
                outcome.breaks += 1
                break
    outcome.requests = account.requests
    return outcome


@dataclass(frozen=True)
class Ahead:
    """So many pages are asked for at once, and answered in an order of their own.

    Each of `answers`: whether some are answered as soon as they are asked for, and which of those that wait comes next.
    """

    at_once: int
    answers: tuple[tuple[bool, int], ...]


class Unordered:
    """Answers requests when it likes, those that nobody waits for included."""

    def __init__(self, answer: Callable[[str], FetchedPage[Patient]], ahead: Ahead) -> None:
        self.ahead = ahead
        self._answer = answer
        self._answers = iter(ahead.answers)
        self._asked: list[str] = []
        self._answered: dict[int, FetchedPage[Patient]] = {}

    def begin(self, url: str, _number: int) -> Callable[[], FetchedPage[Patient]]:
        ticket = len(self._asked)
        self._asked.append(url)
        at_once, which = next(self._answers, (False, -1))
        if at_once:
            self._answer_one(which)

        def wait() -> FetchedPage[Patient]:
            while ticket not in self._answered:
                _, which = next(self._answers, (False, 0))
                self._answer_one(which)
            return self._answered[ticket]

        return wait

    def _answer_one(self, which: int) -> None:
        waiting = [ticket for ticket in range(len(self._asked)) if ticket not in self._answered]
        ticket = waiting[which % len(waiting)]
        self._answered[ticket] = self._answer(self._asked[ticket])


# Most of what matters happens at the front, and to one record or a whole page.
places, sizes = st.integers(0, 2 * PAGE) | st.integers(0, 10**6), st.integers(1, 2 * PAGE + 1)
ticks = st.sampled_from([("clock", 0, 1), ("clock", 0, 5)])


def events(*kinds: str) -> st.SearchStrategy[Event]:
    return st.tuples(st.sampled_from(kinds), places, sizes) | ticks


anything = st.lists(events("insert", "update", "delete"), max_size=4)
additions = st.lists(events("insert") | st.tuples(st.just("clock"), st.just(0), st.integers(-90, 10)), max_size=3)
losses = st.lists(events("delete"), max_size=3)


@st.composite
def accounts(draw: st.DrawFn, newest: int = START, oldest: int = 1) -> Account:
    """An account of up to ten pages, with many records in few seconds."""
    account = Account()
    number = draw(st.integers(0, 10 * PAGE))
    seconds = sorted({oldest, oldest + 1, 50, 99, newest} - set(range(oldest)))
    for created in sorted(draw(st.lists(st.sampled_from(seconds), min_size=number, max_size=number))):
        account.add(created, draw(st.sampled_from([created, max(created, 60), newest])))
    return account


sinces = st.none() | st.sampled_from([0, 51, 60, 90, START, START + 5])
breakings = st.lists(st.booleans(), max_size=8)
thorough = settings(max_examples=examples(400), suppress_health_check=[HealthCheck.too_slow])


def stream(gaps: list[list[Event]], account: Account) -> Callable[[], None]:
    left = iter(gaps)

    def happens() -> None:
        for one in next(left, []):
            happen(account, one)

    return happens


def remaining(outcome: Outcome, account: Account, since: int | None) -> set[int]:
    """The records the crawl owes: there at its beginning, never deleted, and in a crawl of changes not changed."""
    return outcome.at_first & account.records.keys() - (account.changed if since is not None else set())


def pages_of(outcome: Outcome) -> int:
    return max(1, -(-len(outcome.at_first) // PAGE))


@given(accounts(), sinces, st.lists(anything, max_size=12), breakings)
@thorough
def test_whatever_happens_no_record_is_lost(account, since, gaps, breaks):
    # An addition and a removal in one gap hide each other in a list that grows: what is as new as the crawl itself is
    # read by the next one, whose cursor is older.
    older = {one.id for one in account.records.values() if (one.created if since is None else one.updated) < START}
    outcome = crawl(account, since, stream(gaps, account), iter(breaks))
    assert remaining(outcome, account, since) & older <= outcome.yielded
    assert outcome.yielded <= set(range(1, account.made + 1))
    event(f"{outcome.requests - pages_of(outcome)} requests more than pages")


@given(
    accounts(START) | accounts(START + 120),
    sinces,
    st.lists(st.lists(events("insert")) | losses, max_size=6),
    breakings,
)
@thorough
def test_what_a_clock_that_was_set_back_has_stamped_with_later_times_is_read_too(account, since, gaps, breaks):
    outcome = crawl(account, since, stream(gaps, account), iter(breaks))
    assert remaining(outcome, account, since) <= outcome.yielded


@given(accounts(START - 1), sinces, st.lists(anything, max_size=12), breakings)
@thorough
def test_whatever_happens_two_minutes_later_costs_one_request_for_the_first_page_and_one_for_the_newest(
    account, since, gaps, breaks
):
    later = [[("clock", 0, 121), *(gaps[0] if gaps else [])], *gaps[1:]]
    outcome = crawl(account, since, stream(later, account), iter(breaks))
    assert remaining(outcome, account, since) <= outcome.yielded
    assert outcome.requests <= pages_of(outcome) + 2 + outcome.breaks


@given(accounts(START - 1), st.lists(st.lists(events("insert", "update"), max_size=4), max_size=12), breakings)
@thorough
def test_a_crawl_of_everything_from_which_nothing_vanishes_costs_a_request_a_page(account, gaps, breaks):
    outcome = crawl(account, None, stream(gaps, account), iter(breaks))
    assert remaining(outcome, account, None) <= outcome.yielded
    assert outcome.requests == pages_of(outcome)


@given(accounts(START - 1), sinces, st.lists(st.lists(events("insert"), max_size=4), max_size=12), breakings)
@thorough
def test_a_crawl_of_changes_that_nothing_leaves_costs_a_request_a_page(account, since, gaps, breaks):
    outcome = crawl(account, since, stream(gaps, account), iter(breaks))
    assert remaining(outcome, account, since) <= outcome.yielded
    assert outcome.requests == pages_of(outcome)


@given(accounts(START - 1) | accounts(START - 1, 98), sinces, st.lists(additions | losses, max_size=8))
@thorough
def test_a_server_whose_clock_goes_back_hides_no_record(account, since, gaps):
    outcome = crawl(account, since, stream(gaps, account), iter(()))
    assert remaining(outcome, account, since) <= outcome.yielded


@given(accounts(START - 1), sinces, st.integers(0, 8), breakings)
@thorough
def test_a_list_that_is_emptied_ends(account, since, emptied_after, breaks):
    gaps: list[list[Event]] = [[] for _ in range(emptied_after)] + [[("delete", 0, 10**6)]]
    outcome = crawl(account, since, stream(gaps, account), iter(breaks))
    # After the page that tells it: the first one, and the newest.
    assert outcome.requests <= min(pages_of(outcome), emptied_after + 2) + 2 + outcome.breaks


orders = st.lists(st.tuples(st.booleans(), st.integers(-8, 8)), max_size=60) | st.just([(False, -1)] * 200)
aheads = st.builds(Ahead, at_once=st.integers(2, 8), answers=orders.map(tuple))
ahead_thorough = settings(thorough, max_examples=examples(120))


@given(accounts(START - 1), sinces, st.lists(anything, max_size=30), breakings, aheads)
@ahead_thorough
def test_pages_asked_for_ahead_lose_no_record_in_whichever_order_they_are_answered(account, since, gaps, breaks, ahead):
    outcome = crawl(account, since, stream(gaps, account), iter(breaks), ahead)
    assert remaining(outcome, account, since) <= outcome.yielded
    assert outcome.yielded <= set(range(1, account.made + 1))
    event(f"{outcome.requests - pages_of(outcome)} requests more than pages")


@given(accounts(START - 1), sinces, st.lists(st.lists(events("insert"), max_size=4), max_size=30), aheads)
@ahead_thorough
def test_reading_ahead_costs_a_request_a_page_where_nothing_leaves_the_list(account, since, gaps, ahead):
    outcome = crawl(account, since, stream(gaps, account), iter(()), ahead)
    assert remaining(outcome, account, since) <= outcome.yielded
    # Those that are never waited for are never answered here; none is asked for in vain.
    assert outcome.requests == pages_of(outcome)


@given(accounts(START - 1), st.lists(losses, max_size=30), aheads)
@ahead_thorough
def test_what_vanishes_costs_reading_ahead_no_more_than_what_was_on_its_way_again(account, gaps, ahead):
    outcome = crawl(account, None, stream(gaps, account), iter(()), ahead)
    assert remaining(outcome, account, None) <= outcome.yielded
    losing = sum(any(one[0] == "delete" for one in gap) for gap in gaps)
    # Those on their way, and those that were held back.
    assert outcome.requests <= pages_of(outcome) + 2 + losing * 2 * ahead.at_once


@pytest.mark.parametrize(
    ("counts_first", "torn"), [*((False, page) for page in range(2, 8)), *((True, page) for page in range(3, 8))]
)
@pytest.mark.parametrize("vanishing", [1, PAGE, 3 * PAGE + 1, 7 * PAGE])
def test_a_change_between_the_selecting_of_a_page_and_the_counting_loses_no_record_in_pages_read_ahead(
    vanishing, counts_first, torn
):
    account = of_one_second(7 * PAGE)
    everyone = set(account.records)

    def begin(url: str, number: int) -> Callable[[], FetchedPage[Patient]]:
        def answer() -> FetchedPage[Patient]:
            return account.answer(httpx.URL(url))

        def changed() -> FetchedPage[Patient]:
            account.records.pop(vanishing, None)
            return answer()

        early = answer()
        if number == torn and counts_first:
            return lambda: replaced(changed(), early)
        if number == torn:
            counted = changed()
            return lambda: replaced(early, counted)
        return (lambda: early) if counts_first else answer

    yielded = {int(one.id) for page in crawl_pages(Listing(API, PATIENTS), begin) for one in page.records}
    assert everyone - {vanishing} <= yielded


def replaced(selected: FetchedPage[Patient], counted: FetchedPage[Patient]) -> FetchedPage[Patient]:
    decoded = replace(selected.decoded, total_entries=counted.decoded.total_entries, next_url=counted.decoded.next_url)
    return replace(selected, decoded=decoded)


def of_one_second(number: int) -> Account:
    account = Account()
    for _ in range(number):
        account.add(START - 1, START - 1)
    return account


FRONT = [("clock", 0, -START // 2), ("insert", 0, PAGE)]
BACK = [("clock", 0, -1), ("insert", 0, 2 * PAGE)]
NOTHING: list[Event] = []


@pytest.mark.parametrize(
    ("gaps", "breaks"),
    [
        pytest.param([[("delete", 0, 1)]], [], id="deleted before the last page is read"),
        pytest.param([[("delete", 0, 1)]], [False, True], id="deleted, and broken off once that was noticed"),
        pytest.param([NOTHING, NOTHING, [("delete", 0, PAGE)]], [], id="deleted last"),
        pytest.param([NOTHING, FRONT], [], id="added in front"),
        pytest.param([NOTHING, FRONT, NOTHING, [("delete", 0, PAGE + 1)]], [], id="added in front, then deleted"),
        pytest.param(
            [[("delete", 0, 1)], NOTHING, NOTHING, BACK],
            [False, False, False, True],
            id="deleted, broken off before the first page, then added behind",
        ),
    ],
)
def test_what_moves_over_a_boundary_is_read(gaps, breaks):
    account = of_one_second(4 * PAGE)
    outcome = crawl(account, None, stream(gaps, account), iter(breaks))
    assert remaining(outcome, account, None) <= outcome.yielded


@pytest.mark.parametrize("at_once", [2, 3, 8])
@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_pages_answered_last_first_while_something_vanishes_again_and_again_are_read_once_more_and_none_is_lost(
    at_once, every
):
    account = of_one_second(60 * PAGE)
    gaps = [[("delete", 0, 1)] if number % every == 0 else NOTHING for number in range(PAGE * 40)]
    outcome = crawl(account, None, stream(gaps, account), iter(()), Ahead(at_once, ((False, -1),) * 1000))
    assert remaining(outcome, account, None) <= outcome.yielded
    assert outcome.requests <= 2 * 60 + 2


@pytest.mark.parametrize("since", [None, 0])
def test_newest_records_that_come_faster_than_they_are_read_do_not_keep_a_crawl_from_ending(since):
    account = of_one_second(4 * PAGE)
    account.add(START + 60, START + 60)
    import_under_way = [[("clock", 0, 1), ("insert", 0, 3 * PAGE)] for _ in range(1000)]
    outcome = crawl(account, since, stream(import_under_way, account), iter(()))
    assert set(range(1, 4 * PAGE + 1)) <= outcome.yielded
    assert outcome.requests < 100
