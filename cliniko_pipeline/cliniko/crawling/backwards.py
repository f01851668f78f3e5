"""The reading of a list from its last page back to the second, or the first if needed.

A page that arrives while other pages are in flight is held back, because a deletion in the meantime may have hidden a
record from all of them. The page is yielded once another page, requested after its arrival, announces the same number
of entries. Then nothing was deleted in between. If the numbers differ, the page is read again.
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
    """A page that was read, with its number in the list.

    `next_number` is the number of the page to read next, 0 if there is none. `expected` is the number of entries that
    the list would have without deletions. `is_shorter` is true if the list may have fewer entries than `expected`.
    """

    page: FetchedPage[RecordT]
    number: int
    next_number: int
    expected: int
    is_shorter: bool


def read_first(listing: Listing[RecordT], requests: PageRequests[RecordT]) -> Step[RecordT]:
    """Read the first page of a list. The last page comes next."""
    page = requests.read(listing, 1)
    total = page.total_entries
    return Step(page, 1, listing.page_count(total) if total > listing.page_size else 0, total, is_shorter=False)


def read_growing(listing: Listing[RecordT], requests: PageRequests[RecordT]) -> Iterator[Step[RecordT]]:
    """Read the first page of a list that may grow at any time, then the rest backwards."""
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
    """Read a list of `expected` entries from page `number` back to its second page.

    With `first_again`, or if the list may have become shorter, the first page is read again at the end.
    Invariant between two requests: every entry after page `number` has been read, and the latest page announced `known`
    entries. After MAX_CONTRADICTIONS rereads, entries of a list that `can_grow` may be missed. A later crawl reads the
    missed entries.
    """
    known, rereads = expected, 0
    first_again = first_again or number == 1
    held: list[tuple[int, Step[RecordT]]] = []
    while number:
        # The pages read last are requested one by one, so that no page is still held back at the end.
        page = requests.read(listing, number, ahead=0 if can_grow else number - 3)
        can_grow = can_grow or not listing.is_bounded
        total = page.total_entries
        grown, known, has_changed = max(0, total - known), total, total != known
        expected += grown
        # The added records may have moved unread records up to this page.
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
        # Without bounds, added records may hide deletions, so the list may be shorter than it seems.
        is_shorter = first_again or total < expected or not listing.is_bounded
        # Skip the pages after the new end of a list that got shorter, because they are empty.
        before = min(number - 1, _last_page(listing, total))
        step = Step(page, number, 0 if before == 1 and not is_shorter else before, expected, is_shorter)
        number = step.next_number
        if held or requests.has_pages_in_flight:
            held.append((requests.pages_read, step))
        else:
            yield step


def _last_page(listing: Listing[RecordT], total: int) -> int:
    return max(1, listing.page_count(total))
