"""Crawls over real HTTP of an account that changes between two requests; see test_moving_lists for simulated ones."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest

from cliniko_pipeline.cliniko import PATIENTS, ClinikoClient, Event, PageRead, Position, pagination
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.sandbox.server import Sandbox, running_sandbox
from cliniko_pipeline_tests.support.budgets import SlidingWindowBudget
from cliniko_pipeline_tests.support.synced_organizations import START, ManualClock, cliniko_text

LONG_AGO = START - timedelta(days=300)
CURSOR = START - timedelta(hours=1)


class MovingAccount:
    """An account that changes after chosen pages of a crawl; its server's clock moves only when a test moves it."""

    def __init__(self) -> None:
        self.account = Account("clinic", "au4", "bW92aW5n-au4")
        self.clock = ManualClock()
        self.most_at_once = 1
        self.sandbox: Sandbox
        self.seen: set[int] = set()

    def add(self, first: int, beyond: int, *, created: datetime | None = None, updated: datetime | None = None) -> None:
        at = created or self.clock.now
        for number in range(first, beyond):
            record = {"id": str(number), "created_at": cliniko_text(at), "updated_at": cliniko_text(updated or at)}
            self.account.put("patients", record)

    def touch(self, *numbers: int) -> None:
        for number in numbers:
            record = self.account.get("patients", number)
            assert record is not None
            self.account.put("patients", record | {"updated_at": cliniko_text(self.clock.now)})

    def delete(self, first: int, beyond: int) -> None:
        for number in range(first, beyond):
            self.account.delete("patients", number)

    def later(self, seconds: float = 1) -> None:
        self.clock.advance(seconds=seconds)

    def crawl(
        self,
        *happens: Callable[[], None],
        since: datetime | None = None,
        position: Position | None = None,
        pages: int | None = None,
    ) -> Position | None:
        """Read the patients, or so many pages; the first change happens after the first page, and so on."""
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


@pytest.fixture
def empty() -> Iterator[MovingAccount]:
    account = MovingAccount()
    with running_sandbox([account.account], clock=account.clock) as account.sandbox:
        yield account


@pytest.fixture
def full(empty: MovingAccount) -> MovingAccount:
    """Ten pages, all created in one second."""
    empty.add(0, 1000, created=LONG_AGO)
    return empty


def test_deletions_with_pages_ahead_hide_no_record(full, monkeypatch):
    monkeypatch.setattr(pagination, "FEWEST_AT_ONCE", pagination.MOST_AT_ONCE)
    full.most_at_once = pagination.MOST_AT_ONCE
    turns = [range(40 * number, 40 * number + (7 if number % 2 == 0 else 0)) for number in range(20)]
    full.crawl(*(lambda gone=gone: full.delete(gone.start, gone.stop) for gone in turns))
    assert full.seen >= set(range(1000)) - {number for gone in turns for number in gone}


def test_crawl_resumes_in_a_changed_list(full):
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
def changed(empty: MovingAccount) -> MovingAccount:
    """Ten pages, of which every second record has changed since the cursor: five pages."""
    for number in range(1000):
        empty.add(number, number + 1, created=LONG_AGO, updated=CURSOR if number % 2 else LONG_AGO)
    return empty


def test_records_changed_again_hide_no_record(changed):
    def change(*numbers: int) -> Callable[[], None]:
        return lambda: (changed.later(), changed.touch(*numbers))[0]

    changed.crawl(change(1, 3), change(*range(500, 640)), change(5, 997), since=CURSOR)
    touched = {1, 3, 5, 997, *range(500, 640)}
    assert changed.seen >= set(range(1, 1000, 2)) - touched
    assert changed.requests <= 8


def test_next_crawl_reads_what_changed_during_one(changed):
    changed.crawl(lambda: (changed.later(), changed.touch(*range(1, 400, 2))), since=CURSOR)
    horizon, changed.seen = START, set()
    changed.crawl(since=horizon)
    assert changed.seen == set(range(1, 400, 2))


def test_clock_set_back_during_a_crawl_hides_no_record(empty):
    empty.add(0, 1000, created=START - timedelta(seconds=5))

    def an_hour_back() -> None:
        empty.later(-3600)
        empty.add(2000, 2150)

    empty.crawl(lambda: None, lambda: None, an_hour_back)
    assert empty.seen >= set(range(1000))
    assert empty.requests <= 14
