"""A simulated list that changes between requests, and crawls of this list.

It behaves as Cliniko documents its lists. Pages are offsets into live data in order of creation. A page has four
records instead of a hundred (the test sets `Listing.page_size`), so that few records make many pages.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import httpx

from cliniko_pipeline.cliniko.crawling.crawl import Checkpoint, Page, crawl_pages
from cliniko_pipeline.cliniko.crawling.listing import Listing
from cliniko_pipeline.cliniko.crawling.refusals import field_refused
from cliniko_pipeline.cliniko.decoding.pages import FetchedPage
from cliniko_pipeline.cliniko.records import PATIENTS, Patient
from cliniko_pipeline.errors import FieldRefusedError

API = "https://api.au4.cliniko.com/v1"
EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
START = 1000
PAGE = 4
MAX_REQUESTS = 1000


@dataclass(frozen=True)
class Entry:
    id: int
    created: int
    updated: int


@dataclass
class Account:
    """The records of a simulated Cliniko, and its clock in whole seconds.

    Attributes:
        dice: if set, records created in the same clock second change their order with every request.
        refused: fields by which requests may not sort ("sort:id") or filter ("filter:id").
        group_requests: number of requests for the records of a single clock second.
    """

    records: dict[int, Entry] = field(default_factory=dict)
    now: int = START
    made: int = 0
    requests: int = 0
    changed: set[int] = field(default_factory=set)
    dice: random.Random | None = None
    refused: frozenset[str] = frozenset()
    group_requests: int = 0

    def add(self, created: int, updated: int) -> None:
        self.made += 1
        self.records[self.made] = Entry(self.made, created, updated)

    def touch(self, id_: int) -> None:
        self.records[id_] = replace(self.records[id_], updated=self.now)
        self.changed.add(id_)

    def listed(self, *conditions: str) -> list[Entry]:
        entries = sorted(self.records.values(), key=lambda entry: entry.id)
        if self.dice is not None:
            self.dice.shuffle(entries)
        entries.sort(key=lambda entry: entry.created)
        return [entry for entry in entries if all(_holds(entry, condition) for condition in conditions)]

    def answer(self, url: httpx.URL) -> FetchedPage[Patient]:
        self.requests += 1
        assert self.requests <= MAX_REQUESTS
        conditions = url.params.get_list("q[]")
        self._refuse(url.params.get("sort", ""), conditions)
        self.group_requests += _is_of_one_second(url)
        listed = self.listed(*(condition for condition in conditions if condition != "archived_at:*"))
        page = int(url.params["page"])
        entries = listed[(page - 1) * PAGE :][:PAGE]
        shown = [Patient(str(entry.id), _at(entry.created), _at(entry.updated)) for entry in entries]
        following = str(url.copy_set_param("page", str(page + 1))) if page * PAGE < len(listed) else None
        return FetchedPage(shown, [], len(listed), following, _at(self.now))

    def _refuse(self, order: str, conditions: Sequence[str]) -> None:
        used = [f"sort:{name}" for name in order.split(",")]
        used += [f"filter:{condition.partition(':')[0]}" for condition in conditions]
        for use, _, name in (sent.partition(":") for sent in used if sent in self.refused):
            raise field_refused("the list", "sort" if use == "sort" else "filter", name)


def _is_of_one_second(url: httpx.URL) -> bool:
    signs = {condition.rstrip("Z:T-0123456789") for condition in url.params.get_list("q[]")}
    return signs >= {"created_at:>=", "created_at:<"}


def _at(second: int) -> datetime:
    return EPOCH + timedelta(seconds=second)


def _holds(entry: Entry, condition: str) -> bool:
    name, _, comparison = condition.partition(":")
    value = {"id": entry.id, "created_at": entry.created, "updated_at": entry.updated}[name]
    sign = comparison.rstrip("Z:T-0123456789")
    text = comparison.removeprefix(sign)
    bound = float(text) if name == "id" else (datetime.fromisoformat(text) - EPOCH).total_seconds()
    return {">=": value >= bound, "<=": value <= bound, "<": value < bound, ">": value > bound}[sign]


Change = tuple[str, int, int]


def apply(account: Account, change: Change) -> None:
    """Apply a change, which has a kind, a place in the list, and a number of records or seconds."""
    kind, place, size = change
    ids = [entry.id for entry in account.listed()]
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
    """The result of a crawl. `requests` excludes the requests for the records of a single clock second."""

    at_first: set[int]
    yielded: set[int]
    requests: int
    interruptions: int


def crawl(
    account: Account,
    since: int | None,
    changes: Sequence[list[Change]],
    interruptions: Sequence[bool] = (),
    order: "AnswerOrder | None" = None,
    *,
    changes_within_groups: bool = True,
) -> Outcome:
    """Crawl the account, and resume after interruptions. Apply the next changes before every request after the first.

    Without `changes_within_groups`, the account does not change while the records of a single clock second are read.
    One page is in flight at a time, unless `order` says how several are answered.
    """
    next_changes, next_interruptions = iter(changes), iter(interruptions)
    listing = Listing(API, PATIENTS, None if since is None else _at(since))
    own = [] if since is None else [f"updated_at:>={_at(since).isoformat().removesuffix('+00:00')}Z"]
    outcome = Outcome({entry.id for entry in account.listed(*own)}, set(), 0, 0)

    def answer(url: str) -> FetchedPage[Patient]:
        if account.requests and (changes_within_groups or not _is_of_one_second(httpx.URL(url))):
            for change in next(next_changes, []):
                apply(account, change)
        return account.answer(httpx.URL(url))

    def start(checkpoint: Checkpoint | None = None) -> Iterator[Page[Patient]]:
        # Requests in flight at an interruption are never answered.
        server = Server(answer, order or AnswerOrder(1, ()))
        return crawl_pages(listing, server.request, checkpoint, max_in_flight=server.order.in_flight)

    pages, is_interrupted = start(), True
    while is_interrupted:
        is_interrupted = False
        for page in pages:
            outcome.yielded |= {int(record.id) for record in page.records}
            if page.checkpoint is not None and next(next_interruptions, False):
                pages, is_interrupted = start(page.checkpoint), True
                outcome.interruptions += 1
                break
    outcome.requests = account.requests - account.group_requests
    return outcome


@dataclass(frozen=True)
class AnswerOrder:
    """The number of pages in flight, and the order of their responses.

    An item of `answers` says whether to respond as soon as the next request is sent, and to which pending request.
    """

    in_flight: int
    answers: tuple[tuple[bool, int], ...]


class Server:
    """Server that responds to requests in the given order, even if the crawl does not wait for the response."""

    def __init__(self, answer: Callable[[str], FetchedPage[Patient]], order: AnswerOrder) -> None:
        self.order = order
        self._answer = answer
        self._answers = iter(order.answers)
        self._requested: list[str] = []
        self._answered: dict[int, FetchedPage[Patient] | FieldRefusedError] = {}

    def request(self, url: str, _number: int) -> Callable[[], FetchedPage[Patient]]:
        ticket = len(self._requested)
        self._requested.append(url)
        is_immediate, which = next(self._answers, (False, -1))
        if is_immediate:
            self._answer_one(which)

        def wait() -> FetchedPage[Patient]:
            while ticket not in self._answered:
                _, which = next(self._answers, (False, 0))
                self._answer_one(which)
            answered = self._answered[ticket]
            if isinstance(answered, FieldRefusedError):
                raise answered
            return answered

        return wait

    def _answer_one(self, which: int) -> None:
        waiting = [ticket for ticket in range(len(self._requested)) if ticket not in self._answered]
        ticket = waiting[which % len(waiting)]
        try:
            self._answered[ticket] = self._answer(self._requested[ticket])
        except FieldRefusedError as error:
            self._answered[ticket] = error
