"""The client against an account that changes between two of its requests, over real HTTP."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from cliniko_pipeline.cliniko import PATIENTS, ClinikoClient, Event, PageRead, Position, pagination
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.sandbox.server import Sandbox, running_sandbox
from cliniko_pipeline_tests.support.budgets import SlidingWindowBudget

START = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
LONG_AGO = START - timedelta(days=300)
CURSOR = START - timedelta(hours=1)


class Clinic:
    """An account whose server's clock stands still until told, and a client that lets things happen after a page."""

    def __init__(self) -> None:
        self.account = Account("clinic", "au4", "bW92aW5n-au4")
        self.now = START
        self.most_at_once = 1
        self.sandbox: Sandbox
        self.seen: set[int] = set()

    def add(self, first: int, beyond: int, *, created: datetime | None = None, updated: datetime | None = None) -> None:
        at = created or self.now
        for number in range(first, beyond):
            record = {"id": str(number), "created_at": _text(at), "updated_at": _text(updated or at)}
            self.account.put("patients", record)

    def touch(self, *numbers: int) -> None:
        for number in numbers:
            record = self.account.get("patients", number)
            assert record is not None
            self.account.put("patients", record | {"updated_at": _text(self.now)})

    def delete(self, first: int, beyond: int) -> None:
        for number in range(first, beyond):
            self.account.delete("patients", number)

    def clock(self) -> float:
        return self.now.timestamp()

    def later(self, seconds: float = 1) -> None:
        self.now += timedelta(seconds=seconds)

    def crawl(
        self,
        *happens: Callable[[], None],
        since: datetime | None = None,
        position: Position | None = None,
        pages: int | None = None,
    ) -> Position | None:
        """Read the patients, or so many pages; the first thing happens after the first page, and so on."""
        left = iter(happens)

        def on_event(event: Event) -> None:
            if isinstance(event, PageRead):
                next(left, lambda: None)()

        with ClinikoClient(
            "clinic", self.account.api_key, self.sandbox.base_url(self.account), "tests (tests@example.org)",
            SlidingWindowBudget(10_000), most_at_once=self.most_at_once, on_event=on_event,
        ) as client:  # fmt: skip
            following = None
            for number, page in enumerate(client.crawl(PATIENTS, changed_since=since, position=position), start=1):
                self.seen |= {int(record.id) for record in page.records}
                following = page.following
                if number == pages:
                    break
            return following

    @property
    def requests(self) -> int:
        return len(self.sandbox.counters.recorded)


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def served() -> Iterator[Clinic]:
    clinic = Clinic()
    with running_sandbox([clinic.account], clock=clinic.clock) as clinic.sandbox:
        yield clinic


@pytest.fixture
def clinic() -> Iterator[Clinic]:
    with served() as one:
        yield one


@pytest.fixture
def full(clinic: Clinic) -> Clinic:
    """Ten pages, all created in one second."""
    clinic.add(0, 1000, created=LONG_AGO)
    return clinic


def test_a_list_that_grows_costs_no_more_and_the_new_ones_are_for_the_next_crawl(full):
    def grow() -> None:
        full.add(2000 + full.requests * 100, 2100 + full.requests * 100)
        full.later()

    full.crawl(*[grow] * 10)
    assert full.seen == set(range(1000))
    assert full.requests == 10


def test_what_is_deleted_while_the_list_is_read_hides_nothing_and_costs_one_request_and_one_for_the_newest(full):
    full.crawl(
        lambda: full.delete(0, 1),
        lambda: full.delete(90, 110),
        lambda: full.delete(300, 550),
        lambda: full.delete(999, 1000),
    )
    assert full.seen >= set(range(1, 90)) | set(range(110, 300)) | set(range(550, 999))
    assert full.requests <= 12


@pytest.mark.parametrize("every", [1, 2, 3])
def test_what_is_deleted_while_several_pages_are_on_their_way_hides_nothing(full, every, monkeypatch):
    monkeypatch.setattr(pagination, "FEWEST_AT_ONCE", pagination.MOST_AT_ONCE)
    full.most_at_once = pagination.MOST_AT_ONCE
    turns = [range(40 * number, 40 * number + (7 if number % every == 0 else 0)) for number in range(20)]
    full.crawl(*(lambda gone=gone: full.delete(gone.start, gone.stop) for gone in turns))
    assert full.seen >= set(range(1000)) - {number for gone in turns for number in gone}


def test_a_list_emptied_while_it_is_read_ends(full):
    full.crawl(lambda: None, lambda: full.delete(0, 1000))
    assert full.seen == set(range(100)) | set(range(900, 1000))
    assert full.requests == 5


def test_more_than_a_page_of_records_in_the_second_of_the_beginning_is_read_too(full):
    full.add(1000, 1350)
    full.crawl(lambda: full.add(1350, 1360), full.later, lambda: full.delete(0, 3))
    assert full.seen >= set(range(3, 1350))


def test_a_crawl_that_breaks_off_goes_on_in_a_list_that_has_changed(full):
    position = full.crawl(pages=1)
    steps = [
        lambda: full.delete(50, 150),
        lambda: (full.later(121), full.add(2000, 2300)),
        lambda: full.delete(700, 720),
        full.later,
        lambda: full.touch(*range(400, 500)),
    ]
    while position is not None:
        if steps:
            steps.pop(0)()
        position = full.crawl(position=position, pages=1)
    assert full.seen >= set(range(50)) | set(range(150, 700)) | set(range(720, 1000))
    assert full.seen <= set(range(1000))
    assert full.requests == 12


@pytest.fixture
def changed(clinic: Clinic) -> Clinic:
    """Ten pages, of which every second record has changed since the cursor: five pages."""
    for number in range(1000):
        clinic.add(number, number + 1, created=LONG_AGO, updated=CURSOR if number % 2 else LONG_AGO)
    return clinic


def test_a_crawl_of_changes_costs_a_request_a_page(changed):
    changed.crawl(since=CURSOR)
    assert changed.seen == set(range(1, 1000, 2))
    assert changed.requests == 5


def test_what_changes_again_leaves_a_crawl_of_changes_and_hides_nothing(changed):
    def change(*numbers: int) -> Callable[[], None]:
        return lambda: (changed.later(), changed.touch(*numbers))[0]

    changed.crawl(change(1, 3), change(*range(500, 640)), change(5, 997), since=CURSOR)
    touched = {1, 3, 5, 997, *range(500, 640)}
    assert changed.seen >= set(range(1, 1000, 2)) - touched
    assert changed.requests <= 8


def test_what_changes_in_the_second_of_the_beginning_moves_into_the_middle_and_hides_nothing(changed):
    changed.touch(0, 2, 4)
    changed.crawl(
        lambda: changed.touch(6, 8, *range(10, 90, 2)), lambda: (changed.later(), changed.touch(1, 501)), since=CURSOR
    )
    assert changed.seen >= {0, 2, 4} | set(range(1, 1000, 2)) - {1, 501}


def test_the_crawl_after_it_reads_what_one_left_out(changed):
    changed.crawl(lambda: (changed.later(), changed.touch(*range(1, 400, 2))), since=CURSOR)
    horizon, changed.seen = START, set()
    changed.crawl(since=horizon)
    assert changed.seen == set(range(1, 400, 2))


def test_a_server_whose_clock_goes_back_hides_nothing(clinic):
    clinic.add(0, 1000, created=START - timedelta(seconds=5))

    def an_hour_back() -> None:
        clinic.later(-3600)
        clinic.add(2000, 2150)

    clinic.crawl(lambda: None, lambda: None, an_hour_back)
    assert clinic.seen >= set(range(1000))
    assert clinic.requests <= 14


def test_what_the_server_has_stamped_before_its_clock_was_set_back_is_read_too(full):
    full.add(1000, 1250, created=START + timedelta(seconds=120))
    full.crawl()
    assert full.seen == set(range(1250))
    # The first page, one beyond the end of the older ones, their ten, and three of the newest.
    assert full.requests == 15
