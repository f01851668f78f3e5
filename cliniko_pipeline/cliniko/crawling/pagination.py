"""From page to page of a list that changes meanwhile, without losing a record.

Belongs here: the addresses of pages, in which order they are read, and every rule an answer must keep. Does not:
sending, retrying and counting (client.py), and decoding (decoding.py).

Pages are offsets into a live list. Read from the front, a record that vanishes moves all later ones forwards, and the
one at the page boundary out of sight. So the first page, which tells how long the list is, is followed by the last, and
then backwards: what moves forwards moves towards the pages still to come. What remains is the first page itself: if the
list was found shorter than it said, it is read again, last of all.

Several pages may be on their way at once. One that was asked for before the page behind it had come counts only if both
announce the same number of entries. That alone does not tell that nothing has vanished between them: Cliniko may count
the entries a moment before or after it selects them. So what was read while others were on their way is held back until
a page that was asked for after all that announces the same number, too; otherwise it is read again.

That holds as long as nothing comes into the list, so all pages but the first are bounded: only what is two minutes
older than the first answer, since a clock that is set back may stamp earlier than that. What is newer, and what was
stamped as long after it, is read last, where the numbers show that there may be any. A server whose clock goes back
further can still add to the older ones; then the list is found longer, and as many pages as that can have moved are
read again, unless as much vanished from it between the same two requests.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Generic
from urllib.parse import urlencode

import httpx

from cliniko_pipeline.cliniko.crawling.boundaries import Boundaries
from cliniko_pipeline.cliniko.crawling.group_reading import group_pages
from cliniko_pipeline.cliniko.crawling.refusals import Refusals
from cliniko_pipeline.cliniko.crawling.small_pages import read_in_parts
from cliniko_pipeline.cliniko.decoding.pages import DecodedPage
from cliniko_pipeline.cliniko.records import UNANSWERED, Record, RecordT, RejectedRecord, Resource
from cliniko_pipeline.errors import (
    ClinikoUnavailableError,
    FieldRefusedError,
    ForeignLinkError,
    UnexpectedResponseError,
)

PAGE_SIZE = 100
"""Cliniko's maximum."""
MOST_SURPRISES = 10
"""How often one crawl asks again because a page contradicts itself, or because a list that cannot grow has grown."""
FURTHEST_AHEAD = timedelta(minutes=2)
"""So far ahead of the clock that answers may be what is stamped already: once a minute early, then a minute late."""

_DEFAULT_PORTS = {"https": 443, "http": 80}
_PAGE_PARAMETER = re.compile(r"(?:^|&)page=([^&#]*)")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a crawl stands, to go on from in another process: `page` comes next, then those before it; 0: the newest.

    `horizon` is the server's clock when the crawl began, None if it told none: what came to the list later does not
    belong to the crawl. `total_entries` is what the list would hold if nothing had vanished from it since.
    """

    horizon: datetime | None
    page: int
    total_entries: int


@dataclass(frozen=True, slots=True)
class Page(Generic[RecordT]):
    """One page of a list.

    `number` counts the crawl's pages from 1 in the order in which they are read; `pages` is how many there will be as
    far as is known, and `total_entries` how many records the list held at the beginning. `horizon` is when Cliniko
    answered the crawl's first request, by its own clock, in UTC: what a later crawl may start from (less an overlap).
    `following` is where the crawl stands after this page; None after the last.
    """

    records: list[RecordT]
    rejected: list[RejectedRecord]
    number: int
    pages: int
    total_entries: int
    horizon: datetime | None
    following: Position | None


@dataclass(frozen=True, slots=True)
class FetchedPage(Generic[RecordT]):
    """A page as one request brought it."""

    decoded: DecodedPage[RecordT]
    server_date: datetime | None

    @property
    def entries(self) -> int:
        """How many records the page holds, those that were rejected too."""
        return len(self.decoded.records) + len(self.decoded.rejected)


Begin = Callable[[str, int], Callable[[], FetchedPage[RecordT]]]
"""The same in two steps: what it returns waits for the page. It may be begun and never waited for."""

AskSmall = Callable[[str, int], FetchedPage[RecordT]]
"""Gets the address of a part of a page, and the page's number."""

MOST_AT_ONCE = 8
"""So many pages of one list are on their way at most."""
FEWEST_AT_ONCE = 1
READ_FOR_EACH_PAGE_AHEAD = 80
"""A page more is asked for ahead for each so many that were read, however soon they come: a crawl that breaks off loses
what is on its way and what waits for it."""
ALONE_AFTER_A_CHANGE = 4
"""So many pages are read one by one when the list has changed: what is asked for ahead would be in vain."""
LONG_WAIT_SECONDS = 0.03
"""Whoever waits longer for a page asks for one more ahead."""


@dataclass(frozen=True)
class Listing(Generic[RecordT]):
    """What a crawl reads: a resource whole, or what changed at or after an instant of the server's clock.

    `bounds` are further filters. What is refused of all this is left out.
    """

    api_url: str
    resource: Resource[RecordT]
    changed_since: datetime | None = None
    bounds: tuple[str, ...] = ()
    refusals: Refusals = field(default_factory=Refusals, compare=False, repr=False)

    def url(self, page: int, per_page: int = PAGE_SIZE) -> str:
        """Return the address of a page, archived, cancelled and deleted records included.

        The order is by creation, which never changes: under any other, records change places while the list is read.
        Records of the same second have no order of their own; the id gives them one.
        """
        return f"{self._unpaged_url}&page={page}&per_page={per_page}"

    @property
    def _unpaged_url(self) -> str:
        since = [] if self.changed_since is None else [f"updated_at:>={_second(self.changed_since)}"]
        conditions = [
            ("q[]", each)
            for each in (*self.resource.include_everything, *since, *self.bounds)
            if self.can_filter_by(each.partition(":")[0])
        ]
        order = [each for each in ("created_at", "id") if self.refusals.allows(self.resource.name, "sort", each)]
        # By creation is the default: without that field, the other would make another order.
        sort = [("sort", ",".join(order))] if "created_at" in order else []
        return f"{self.address}?{urlencode([*sort, *conditions])}"

    def can_filter_by(self, name: str) -> bool:
        """Whether the field can be filtered by, as far as is known."""
        return self.refusals.allows(self.resource.name, "filter", name)

    @property
    def is_bounded(self) -> bool:
        """Whether all bounds can be sent."""
        return all(self.can_filter_by(each.partition(":")[0]) for each in self.bounds)

    @property
    def left_out(self) -> list[str]:
        """The fields that the list should be filtered by and is not."""
        names = [each.partition(":")[0] for each in (*self.resource.include_everything, *self.bounds)]
        return [each for each in names if not self.can_filter_by(each)]

    def place_of(self, entry: int) -> str:
        """Say in words which record that is, counted from 1."""
        since = self.changed_since
        return f"record {entry}" + (f" of what changed since {_second(since)}" if since is not None else "")

    @property
    def address(self) -> str:
        """Without the query."""
        return f"{self.api_url}/{self.resource.path or self.resource.name}"

    def before(self, horizon: datetime) -> "Listing[RecordT]":
        """Return the part that was stamped before the horizon."""
        return replace(self, bounds=(f"{self._field}:<{_second(horizon)}",))

    def newest(self, horizon: datetime) -> "Listing[RecordT]":
        """Return the part to which something may be added, and what is stamped later although it is there already."""
        earliest, latest = _second(horizon - FURTHEST_AHEAD), _second(horizon + FURTHEST_AHEAD)
        return replace(self, bounds=(f"{self._field}:>={earliest}", f"{self._field}:<={latest}"))

    def of_second(self, second: datetime) -> "Listing[RecordT]":
        """Return the part that was created in this second, whose fractions Cliniko may know."""
        of_it = f"created_at:>={_second(second)}", f"created_at:<{_second(second + timedelta(seconds=1))}"
        return replace(self, bounds=(*(each for each in self.bounds if not each.startswith("created_at:")), *of_it))

    def further(self, filters: tuple[str, ...]) -> "Listing[RecordT]":
        """Return the part for which these hold, too."""
        return replace(self, bounds=(*self.bounds, *filters))

    @property
    def _field(self) -> str:
        # A record that changes leaves what changed before the horizon; nothing leaves what was created before it.
        is_whole = self.changed_since is None or not self.can_filter_by("updated_at")
        return "created_at" if is_whole else "updated_at"


@dataclass(frozen=True, slots=True)
class _Step(Generic[RecordT]):
    """The page `number` of the list, as it was read. `following` is the number of the one to read next, 0 if that was
    all.

    `expected` is what the list would hold if nothing had vanished from it; it is `shorter` if it holds less.
    """

    fetched: FetchedPage[RecordT]
    number: int
    following: int
    expected: int
    shorter: bool


def crawl_pages(
    listing: Listing[RecordT],
    begin: Callable[[str, int], Callable[[], FetchedPage[RecordT]]],
    position: Position | None = None,
    *,
    at_once: int = MOST_AT_ONCE,
    ask_small: "AskSmall[RecordT] | None" = None,
) -> Iterator[Page[RecordT]]:
    """Yield a list's pages, from its beginning or from a position, up to `at_once` of them asked for ahead.

    Every record that is in the list at the beginning, and neither vanishes nor changes meanwhile, is yielded, some of
    them twice. That costs a request for each page, and where the list was found shorter (something vanished, or came in
    the two minutes before the beginning, or is stamped later) one for the first page again and one for each page of
    those two minutes and the two after them.

    `begin` gets an address and the page's number. `ask_small` is asked for the parts of a page for which it raised
    ClinikoUnavailableError; a record for which that raises it, too, is rejected, if the list is answered otherwise.
    Raises ForeignLinkError for a `next` link that leaves the API's
    address, and UnexpectedResponseError for one that does not lead to the next page, and for a list that contradicts
    itself again and again: pages that are not full, an end before or after the entries it announces, or growth where
    nothing can be added.
    """
    requests = _Requests(begin, at_once, ask_small)
    if position is not None:
        try:
            yield from _rest(listing, requests, position, Boundaries(), is_resumed=True)
        except UnexpectedResponseError:
            if listing.can_filter_by("created_at"):
                raise
            # Which records of a second came before it broke off cannot be asked for.
            yield from crawl_pages(listing, begin, at_once=at_once, ask_small=ask_small)
        return
    first = _first_step(listing, requests)
    horizon = first.fetched.server_date
    if not first.following:
        yield _page(first.fetched, 1, first.expected, horizon, None)
        return
    boundaries = Boundaries()
    boundaries.begin(first.fetched.decoded)
    position = Position(horizon, first.following, first.expected)
    yield _page(first.fetched, 1, first.expected, horizon, position)
    yield from _rest(listing, requests, position, boundaries)


def _rest(
    listing: Listing[RecordT],
    requests: "_Requests[RecordT]",
    position: Position,
    boundaries: Boundaries,
    *,
    is_resumed: bool = False,
) -> Iterator[Page[RecordT]]:
    """Yield what is left of a crawl after its first page."""
    horizon, expected = position.horizon, position.total_entries
    begins_at, first_again = position.page, position.page == 1
    if is_resumed and begins_at:
        # Of the group that the page behind begins with, nobody knows any more whether all of it was read.
        begins_at = min(begins_at + 1, max(1, _pages(expected)))
    number = _pages(expected) - begins_at + 1
    left: Position | None = position
    # To which nothing is added any more: its time is over by any clock of the server.
    older = listing if horizon is None else listing.before(horizon - FURTHEST_AHEAD)
    for step in _backwards(older, requests, begins_at, expected, first_again=first_again):
        expected = step.expected
        for again in _missed(older, requests, boundaries, step):
            number += 1
            yield _page(again, number, expected, horizon, left)
        number += 1
        newest_left = step.shorter and horizon is not None and older.is_bounded
        left = Position(horizon, step.following, expected) if step.following or newest_left else None
        yield _page(step.fetched, number, expected, horizon, left)
    if left is None or horizon is None or not older.is_bounded:
        return
    newest, boundaries = listing.newest(horizon), Boundaries()
    for step in _newest(newest, requests):
        if step.number == 1 and step.following:
            boundaries.begin(step.fetched.decoded)
        else:
            for again in _missed(newest, requests, boundaries, step):
                number += 1
                yield _page(again, number, expected, horizon, left)
        number += 1
        yield _page(step.fetched, number, expected, horizon, left if step.following else None)


def _missed(
    listing: Listing[RecordT], requests: "_Requests[RecordT]", boundaries: Boundaries, step: _Step[RecordT]
) -> Iterator[FetchedPage[RecordT]]:
    """Read again the groups of one second of which records may be missed, now that they are read to their beginning."""
    decoded = step.fetched.decoded
    torn = boundaries.take(step.number, decoded, is_end=step.number * PAGE_SIZE >= decoded.total_entries)
    if not step.following:
        torn += boundaries.finish()
    for second in torn:
        group = listing.of_second(second)

        def ask(filters: tuple[str, ...], number: int, group: Listing[RecordT] = group) -> DecodedPage[RecordT]:
            return requests.alone(group.further(filters), number).decoded

        what = f"{listing.resource.name} created at {_second(second)}"
        for page in group_pages(ask, lambda: listing.can_filter_by("id"), PAGE_SIZE, what):
            yield FetchedPage(page, step.fetched.server_date)


def _first_step(listing: Listing[RecordT], requests: "_Requests[RecordT]") -> _Step[RecordT]:
    fetched = requests.page(listing, 1)
    total = fetched.decoded.total_entries
    return _Step(fetched, 1, _pages(total) if total > PAGE_SIZE else 0, total, shorter=False)


def _newest(listing: Listing[RecordT], requests: "_Requests[RecordT]") -> Iterator[_Step[RecordT]]:
    first = _first_step(listing, requests)
    yield first
    if first.following:
        yield from _backwards(listing, requests, first.following, first.expected, grows=True)


def _backwards(
    listing: Listing[RecordT],
    requests: "_Requests[RecordT]",
    number: int,
    expected: int,
    *,
    first_again: bool = False,
    grows: bool = False,
) -> Iterator[_Step[RecordT]]:
    """Read a list from a page to its second, and to its first if that has to be read again.

    What holds between two requests: everything behind page `number` has been read, of a list of `known` entries. For
    one that `grows` all the time this is given up in the end: a later crawl reads whatever stands in it.
    """
    known, rereads = expected, 0
    first_again = first_again or number == 1
    held: list[tuple[int, _Step[RecordT]]] = []
    while number:
        # The last ones one by one: none is held back in the end.
        fetched = requests.page(listing, number, ahead=0 if grows else number - 3)
        grows = grows or not listing.is_bounded
        total = fetched.decoded.total_entries
        grown, known, has_changed = max(0, total - known), total, total != known
        expected += grown
        # So far behind the page may be now what has not been read.
        furthest = min((held[0][1].number if held else number) + _pages(grown), max(1, _pages(total)))
        is_behind = grown and furthest > number and not (grows and rereads == MOST_SURPRISES)
        if is_behind or (held and has_changed):
            if is_behind:
                rereads += 1
            if is_behind and not grows:
                requests.surprised(listing, number)
            held.clear()
            requests.one_by_one()
            number = furthest
            continue
        while held and held[0][0] <= requests.begun_after:
            yield held.pop(0)[1]
        # Unbounded, a list may have got as many as it lost.
        shorter = first_again or total < expected or not listing.is_bounded
        step = _Step(fetched, number, _page_before(number, total, shorter), expected, shorter)
        number = step.following
        if held or requests.is_ahead:
            held.append((requests.read, step))
        else:
            yield step


def _page_before(number: int, total: int, first_again: bool) -> int:
    # The pages beyond the end of a list that got shorter are empty.
    before = min(number - 1, max(1, _pages(total)))
    return 0 if before == 1 and not first_again else before


class _Requests(Generic[RecordT]):
    """Gets pages that do not contradict themselves, or one another."""

    def __init__(
        self,
        begin: Callable[[str, int], Callable[[], FetchedPage[RecordT]]],
        at_once: int,
        ask_small: AskSmall[RecordT] | None = None,
    ) -> None:
        self._begin = begin
        self._ask_small = ask_small
        self._most_at_once = at_once
        self._at_once = min(at_once, FEWEST_AT_ONCE)
        self._surprises = 0
        self._alone = 1  # until it is known how many entries there are
        self._begun: dict[str, tuple[int, Callable[[], FetchedPage[RecordT]]]] = {}
        self._last_total: int | None = None
        self.read = 0
        self.begun_after = 0

    @property
    def is_ahead(self) -> bool:
        """Whether pages are on their way that were asked for before the last one had come."""
        return bool(self._begun)

    def one_by_one(self) -> None:
        """Gives up what is on its way: the list changes. The next pages are read alone."""
        self._begun.clear()
        self._alone = ALONE_AFTER_A_CHANGE

    def page(self, listing: Listing[RecordT], number: int, ahead: int = 0) -> FetchedPage[RecordT]:
        """The page, while up to `ahead` pages in front of it are asked for, too.

        `read` counts the pages that were; `begun_after`: how many were when this one was asked for.
        """
        while True:
            url = listing.url(number)
            try:
                try:
                    fetched = self._fetched(listing, url, number, ahead)
                except ClinikoUnavailableError as error:
                    # What is on its way was asked for before the parts are.
                    self.one_by_one()
                    self.begun_after = self.read
                    fetched = self._in_parts(listing, number, error)
            except FieldRefusedError as error:
                self._without_field(listing, error)
                continue
            if fetched.decoded.next_url is not None:
                _check_link(fetched.decoded.next_url, url, listing, number)
            if _agrees_with_itself(fetched, number):
                self._last_total = fetched.decoded.total_entries
                self.read += 1
                return fetched
            # Cliniko may count the entries a moment before or after it selects them.
            self.surprised(listing, number)

    def alone(self, listing: Listing[RecordT], number: int) -> FetchedPage[RecordT]:
        """A page of another list, aside from those that are on their way."""
        while True:
            url = listing.url(number)
            try:
                try:
                    fetched = self._begin(url, number)()
                except ClinikoUnavailableError as error:
                    fetched = self._in_parts(listing, number, error)
            except FieldRefusedError as error:
                self._without_field(listing, error)
                continue
            if not listing.can_filter_by("created_at"):
                raise UnexpectedResponseError(
                    f"{listing.resource.name}: Cliniko gives records of one second no order and refuses to filter by"
                    " created_at, so that some may be missed. Nothing was marked as deleted: the next sync tries again"
                )
            if fetched.decoded.next_url is not None:
                _check_link(fetched.decoded.next_url, url, listing, number)
            if _agrees_with_itself(fetched, number):
                return fetched
            self.surprised(listing, number)

    def _in_parts(self, listing: Listing[RecordT], number: int, error: ClinikoUnavailableError) -> FetchedPage[RecordT]:
        """Read a page in parts that agree with one another; raise its error if nothing else is answered either."""
        if self._ask_small is None:
            raise error
        page = _PageInParts(listing, number, self._ask_small)
        while True:
            try:
                read = page.read()
            except ClinikoUnavailableError:
                raise error from None
            if read is not None:
                return read
            self.surprised(listing, number)

    def _without_field(self, listing: Listing[RecordT], error: FieldRefusedError) -> None:
        """What is on its way is refused, too."""
        if not listing.refusals.add(listing.resource.name, error.use, error.field):
            raise error
        self._begun.clear()

    def _fetched(self, listing: Listing[RecordT], url: str, number: int, ahead: int) -> FetchedPage[RecordT]:
        was_begun = url in self._begun
        self.begun_after, wait = self._begun.pop(url, None) or (self.read, self._begin(url, number))
        at_once = min(max(self._at_once, 1 + self.read // READ_FOR_EACH_PAGE_AHEAD), self._most_at_once)
        most = 0 if self._alone else min(ahead, at_once - 1)
        self._alone = max(0, self._alone - 1)
        for before in range(number - 1, number - 1 - most, -1):
            if (there := listing.url(before)) not in self._begun:
                self._begun[there] = self.read, self._begin(there, before)
        started = time.monotonic()
        fetched = wait()
        if time.monotonic() - started > LONG_WAIT_SECONDS:
            self._at_once = min(self._at_once + 1, self._most_at_once)
        if fetched.decoded.total_entries != self._last_total:
            # Something has vanished in between. Whatever was on its way meanwhile may have been selected before.
            self._begun.clear()
            if self._last_total is not None:
                self.one_by_one()
            if was_begun:
                self.begun_after = self.read
                return self._begin(url, number)()
        return fetched

    def surprised(self, listing: Listing[RecordT], number: int) -> None:
        self._surprises += 1
        if self._surprises > MOST_SURPRISES:
            raise UnexpectedResponseError(
                f"{listing.resource.name}, page {number}: the list does not hold the number of entries it announces, "
                "or never stays the same: try again later, and report this to Cliniko if it stays"
            )


def _agrees_with_itself(fetched: FetchedPage[RecordT], number: int, size: int | None = None) -> bool:
    size, total = size or PAGE_SIZE, fetched.decoded.total_entries
    due = min(size, max(0, total - size * (number - 1)))
    return fetched.entries == due and (fetched.decoded.next_url is not None) == (total > size * number)


_Part = tuple[FetchedPage[RecordT], bool]
"""A part of a page, and whether it agrees with itself."""


@dataclass(frozen=True, slots=True)
class _PageInParts(Generic[RecordT]):
    """A page that is not answered, to be read in parts."""

    listing: Listing[RecordT]
    number: int
    send: AskSmall[RecordT]

    def read(self) -> FetchedPage[RecordT] | None:
        """Return the page, its records that are not answered alone rejected; None if its parts contradict one another.

        Raises ClinikoUnavailableError where no other record of the resource is answered either.
        """
        first, beyond = (self.number - 1) * PAGE_SIZE, self.number * PAGE_SIZE
        try:
            total = self._ask(self.listing, beyond + 1, 1).decoded.total_entries
        except ClinikoUnavailableError:
            # It may be the record there that is not answered.
            total = self._ask(self.listing, 1, 1).decoded.total_entries
        parts = read_in_parts(partial(self._part, total), first, min(beyond, total))
        return _joined_parts(parts, total, self.listing.url(self.number + 1) if total > beyond else None)

    def _ask(self, listing: Listing[RecordT], number: int, size: int) -> FetchedPage[RecordT]:
        url = listing.url(number, size)
        fetched = self.send(url, self.number)
        if fetched.decoded.next_url is not None:
            _check_link(fetched.decoded.next_url, url, listing, number)
        return fetched

    def _part(self, total: int, number: int, size: int) -> _Part[RecordT]:
        try:
            fetched = self._ask(self.listing, number, size)
        except ClinikoUnavailableError as error:
            if size > 1:
                raise
            reason = f"{UNANSWERED} ({self.listing.place_of(number)})"
            rejected = [RejectedRecord(self.listing.resource.name, None, reason)]
            return FetchedPage(DecodedPage([], rejected, total, None), self._another(error).server_date), True
        return fetched, _agrees_with_itself(fetched, number, size)

    def _another(self, error: ClinikoUnavailableError) -> FetchedPage[RecordT]:
        """Return a page with some other record of the resource; raise the error where none is answered."""
        everything = replace(self.listing, changed_since=None, bounds=())
        for place in (1, 2, PAGE_SIZE + 1):
            with suppress(ClinikoUnavailableError):
                fetched = self._ask(everything, place, 1)
                if fetched.entries:
                    return fetched
        raise error


def _joined_parts(parts: list[_Part[RecordT]], total: int, next_url: str | None) -> FetchedPage[RecordT] | None:
    """Return the page that the parts make, with the earliest of their times; None if they contradict one another."""
    decoded = [fetched.decoded for fetched, _ in parts]
    records = [record for each in decoded for record in each.records]
    rejected = [
        _with_neighbours(record, decoded, place) for place, each in enumerate(decoded) for record in each.rejected
    ]
    ids = [record.id for record in (*records, *rejected) if record.id is not None]
    is_one_list = all(agrees for _, agrees in parts) and all(each.total_entries == total for each in decoded)
    if not is_one_list or len(set(ids)) < len(ids):
        return None
    dates = [fetched.server_date for fetched, _ in parts]
    known = [date for date in dates if date is not None]
    date = min(known) if known and len(known) == len(dates) else None
    return FetchedPage(DecodedPage(records, rejected, total, next_url), date)


def _with_neighbours(rejected: RejectedRecord, parts: list[DecodedPage[RecordT]], place: int) -> RejectedRecord:
    """Say between which records of its page one stands that is not answered: nothing else is known of it."""
    if not rejected.reason.startswith(UNANSWERED):
        return rejected
    before = [f"after {_described(each.records[-1])}" for each in parts[:place] if each.records][-1:]
    behind = [f"before {_described(each.records[0])}" for each in parts[place + 1 :] if each.records][:1]
    reason = ", ".join([rejected.reason.removesuffix(")"), *before, *behind])
    return RejectedRecord(rejected.resource, None, f"{reason})")


def _described(record: Record) -> str:
    return f"{record.id} created at {_second(record.created_at)}"


def _page(
    fetched: FetchedPage[RecordT], number: int, expected: int, horizon: datetime | None, following: Position | None
) -> Page[RecordT]:
    decoded = fetched.decoded
    pages = max(number, _pages(expected))
    return Page(decoded.records, decoded.rejected, number, pages, expected, horizon, following)


def _pages(entries: int) -> int:
    return -(-entries // PAGE_SIZE)


def _second(moment: datetime) -> str:
    # Filters know whole seconds, and so does the clock that the horizon comes from.
    return f"{moment.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat()}Z"


def _check_link(link: str, current: str, listing: Listing[RecordT], number: int) -> None:
    """Hold a `next` link against what is known of it. It is not followed, but a wrong one tells of a wrong API URL."""
    if _is_the_usual_link(link, listing, number):
        return
    what, url = f"{listing.resource.name}, page {number}", _joined(link, httpx.URL(current))
    if url is None or not _stays_within(url, httpx.URL(listing.api_url)):
        raise ForeignLinkError(
            f"{what}: the link to the next page leaves the organization's API URL and was not followed: check that "
            "the API URL is Cliniko's own"
        )
    if url.params.get("page") != str(number + 1):
        raise UnexpectedResponseError(
            f"{what}: the link to the next page does not lead to page {number + 1}: try again later, and report this "
            "to Cliniko if it stays"
        )


def _is_the_usual_link(link: str, listing: Listing[RecordT], number: int) -> bool:
    # Taking the address apart takes longer than all else that is done with a page but decoding it.
    address, _, query = link.partition("?")
    return address == listing.address and _PAGE_PARAMETER.findall(query) == [str(number + 1)]


def _joined(link: str, current: httpx.URL) -> httpx.URL | None:
    try:
        return current.join(link)
    except (httpx.InvalidURL, ValueError):
        return None


def _stays_within(url: httpx.URL, base: httpx.URL) -> bool:
    path, prefix = url.path, f"{base.path.rstrip('/')}/"
    return (
        _origin(url) == _origin(base)
        and not url.userinfo
        and path.startswith(prefix)
        and "\\" not in path
        and not {"", ".", ".."} & set(path.removeprefix(prefix).split("/"))
    )


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or _DEFAULT_PORTS.get(url.scheme)
