"""A list read from a page back to its second one, and to its first if that must be read again.

A page requested while others were in flight is held back. It counts when a page requested after it announces the same
number of entries: then nothing was deleted in between. Otherwise it is read again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic

from cliniko_pipeline.cliniko.crawling.listing import Listing
from cliniko_pipeline.cliniko.crawling.page_requests import MAX_CONTRADICTIONS, PageRequests
from cliniko_pipeline.cliniko.decoding.pages import FetchedPage
from cliniko_pipeline.cliniko.records import RecordT


@dataclass(frozen=True, slots=True)
class Step(Generic[RecordT]):
    """The page `number` of the list as it was read, and the number of the page to read next, 0 for none.

    `expected` is the number of entries the list would have without deletions; `is_shorter` if it has fewer.
    """

    page: FetchedPage[RecordT]
    number: int
    next_number: int
    expected: int
    is_shorter: bool


def read_first(listing: Listing[RecordT], requests: PageRequests[RecordT]) -> Step[RecordT]:
    """Read the first page of a list, which is followed by its last one."""
    page = requests.read(listing, 1)
    total = page.total_entries
    return Step(page, 1, listing.page_count(total) if total > listing.page_size else 0, total, is_shorter=False)


def read_growing(listing: Listing[RecordT], requests: PageRequests[RecordT]) -> Iterator[Step[RecordT]]:
    """Read a list to which records may be added all the time: its first page, then backwards from its last."""
    first = read_first(listing, requests)
    yield first
    if first.next_number:
        yield from read_backwards(listing, requests, first.next_number, first.expected, can_grow=True)


def read_backwards(
    listing: Listing[RecordT],
    requests: PageRequests[RecordT],
    number: int,
    expected: int,
    *,
    first_again: bool = False,
    can_grow: bool = False,
) -> Iterator[Step[RecordT]]:
    """Read a list of `expected` entries from page `number` back to the second, or with `first_again` to the first.

    Invariant between two requests: everything after page `number` has been read, of a list of `known` entries. A list
    that `can_grow` loses this guarantee after MAX_CONTRADICTIONS rereads: a later crawl reads what it still holds.
    """
    known, rereads = expected, 0
    first_again = first_again or number == 1
    held: list[tuple[int, Step[RecordT]]] = []
    while number:
        # The last pages are requested one by one, so that none is held back at the end.
        page = requests.read(listing, number, ahead=0 if can_grow else number - 3)
        can_grow = can_grow or not listing.is_bounded
        total = page.total_entries
        grown, known, has_changed = max(0, total - known), total, total != known
        expected += grown
        # Growth may have moved unread records this far back.
        furthest = min((held[0][1].number if held else number) + listing.page_count(grown), _last_page(listing, total))
        is_moved = grown and furthest > number and not (can_grow and rereads == MAX_CONTRADICTIONS)
        if is_moved or (held and has_changed):
            if is_moved:
                rereads += 1
            if is_moved and not can_grow:
                requests.count_contradiction(listing, number)
            held.clear()
            requests.discard_pages_in_flight()
            number = furthest
            continue
        while held and held[0][0] <= requests.requested_after:
            yield held.pop(0)[1]
        # Without bounds, additions may hide deletions.
        is_shorter = first_again or total < expected or not listing.is_bounded
        # Pages after the end of a list that got shorter are empty.
        before = min(number - 1, _last_page(listing, total))
        step = Step(page, number, 0 if before == 1 and not is_shorter else before, expected, is_shorter)
        number = step.next_number
        if held or requests.has_pages_in_flight:
            held.append((requests.pages_read, step))
        else:
            yield step


def _last_page(listing: Listing[RecordT], total: int) -> int:
    return max(1, listing.page_count(total))
