"""A crawl that misses no record of a list, although the list changes while it is read.

Pages are offsets into a live list. If pages were read from first to last, a deletion would move a record from the next
page to a page that was already read. So the crawl learns the number of entries from the first page, and then reads from
the last page back to the second. In this order, deletions move records only to pages that are still to be read. If the
list got shorter, the first page is read again at the end (backwards.py).

This order works as long as nothing is added to the list. So all pages except the first are bounded: they contain only
records with time stamps more than MAX_CLOCK_SKEW before the first response. The first page announces newer records,
too. If the bounded pages have fewer entries than announced, some records are newer or were deleted. Then the newer
records are read last.

If two of Cliniko's clocks differ by more than MAX_CLOCK_SKEW, records can still be added to the bounded pages. The
added records push unread records on to pages that were already read. The crawl notices that the list grew, and goes
back by the number of pages that the added records can fill.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Generic

from cliniko_pipeline.cliniko.crawling.backwards import Step, read_backwards, read_first, read_growing
from cliniko_pipeline.cliniko.crawling.boundaries import Boundaries
from cliniko_pipeline.cliniko.crawling.group_reading import group_pages
from cliniko_pipeline.cliniko.crawling.listing import MAX_CLOCK_SKEW, Listing, format_second
from cliniko_pipeline.cliniko.crawling.page_parts import FetchPart
from cliniko_pipeline.cliniko.crawling.page_requests import MAX_PAGES_IN_FLIGHT, PageRequests, RequestPage
from cliniko_pipeline.cliniko.decoding.pages import FetchedPage
from cliniko_pipeline.cliniko.records import RecordT, RejectedRecord
from cliniko_pipeline.errors import UnexpectedResponseError


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The place where a crawl resumes, in the same or another process.

    `page` is the number of the page to read next, or 0 if only the newest records are still to be read. From that page
    the crawl reads towards the first page. `started_at` is the server's clock at the start of the crawl, None if
    unknown. The crawl need not read records added later. `total_entries` is the number of entries that the list would
    have without deletions since the start.
    """

    started_at: datetime | None
    page: int
    total_entries: int


@dataclass(frozen=True, slots=True)
class Page(Generic[RecordT]):
    """One page of a crawl.

    `number` is the page's place in the order of reading, from 1. `pages` is the expected number of pages.
    `total_entries` is the number of entries that the list would have without deletions since the start. `started_at` is
    the server's clock (UTC) at the first response. A later crawl reads the changes since this time minus an overlap.
    `checkpoint` is where the crawl resumes after this page, None after the last page.
    """

    records: list[RecordT]
    rejected: list[RejectedRecord]
    number: int
    pages: int
    total_entries: int
    started_at: datetime | None
    checkpoint: Checkpoint | None


def crawl_pages(
    listing: Listing[RecordT],
    request: RequestPage[RecordT],
    checkpoint: Checkpoint | None = None,
    *,
    max_in_flight: int = MAX_PAGES_IN_FLIGHT,
    fetch_part: "FetchPart[RecordT] | None" = None,
) -> Iterator[Page[RecordT]]:
    """Yield a list's pages from the start or a checkpoint.

    Up to `max_in_flight` requests are sent at a time. Yields every record that is in the list at the start and is
    neither deleted nor changed during the crawl. Some records come twice. Each page costs one request. A list that got
    shorter costs one more request for the first page, and one for each page of the newest records.

    If `request` raises ClinikoUnavailableError for a page, `fetch_part` requests parts of the page. A record that fails
    even alone becomes a rejected record, provided that Cliniko returns some other record of the resource. If Cliniko
    returns none, the error is raised.

    Raises ForeignLinkError for a `next` link that leaves the API URL. Raises UnexpectedResponseError for a `next` link
    to the wrong page, and for a list that contradicts itself repeatedly. It does so if a page's
    records or `next` link do not fit the announced number of entries, or if the bounded pages grow.
    """
    requests = PageRequests(request, max_in_flight, fetch_part)
    if checkpoint is not None:
        try:
            yield from _crawl_rest(listing, requests, checkpoint, Boundaries(), is_resumed=True)
        except UnexpectedResponseError:
            if listing.can_filter_by("created_at"):
                raise
            # Start again. The interruption may have split records that were created in the same second. Reading them
            # on their own needs the filter by created_at, which Cliniko refuses.
            yield from crawl_pages(listing, request, max_in_flight=max_in_flight, fetch_part=fetch_part)
        return
    first = read_first(listing, requests)
    started_at = first.page.server_date
    boundaries = Boundaries()
    boundaries.begin(first.page)
    checkpoint = Checkpoint(started_at, first.next_number, first.expected) if first.next_number else None
    yield _page(listing, first.page, 1, first.expected, started_at, checkpoint)
    if checkpoint is not None:
        yield from _crawl_rest(listing, requests, checkpoint, boundaries)


def _crawl_rest(
    listing: Listing[RecordT],
    requests: PageRequests[RecordT],
    checkpoint: Checkpoint,
    boundaries: Boundaries,
    *,
    is_resumed: bool = False,
) -> Iterator[Page[RecordT]]:
    """Yield the pages of a crawl after its first page."""
    started_at, expected = checkpoint.started_at, checkpoint.total_entries
    last_number, first_again = checkpoint.page, checkpoint.page == 1
    if is_resumed and last_number:
        # Begin with a page that was already read: its first records may share their second with unread records.
        last_number = min(last_number + 1, max(1, listing.page_count(expected)))
    pages_yielded = listing.page_count(expected) - last_number + 1
    resume_at: Checkpoint | None = checkpoint
    # Unless Cliniko's clocks differ by more, no record is added to `older`: even the slowest clock is past its bound.
    older = listing if started_at is None else listing.before(started_at - MAX_CLOCK_SKEW)
    for step in read_backwards(older, requests, last_number, expected, first_again=first_again):
        expected = step.expected
        for page in _reread_torn_groups(older, requests, boundaries, step):
            pages_yielded += 1
            yield _page(listing, page, pages_yielded, expected, started_at, resume_at)
        pages_yielded += 1
        has_newest = step.is_shorter and started_at is not None and older.is_bounded
        resume_at = Checkpoint(started_at, step.next_number, expected) if step.next_number or has_newest else None
        yield _page(listing, step.page, pages_yielded, expected, started_at, resume_at)
    if resume_at is None or started_at is None or not older.is_bounded:
        return
    newest, boundaries = listing.newest(started_at), Boundaries()
    for step in read_growing(newest, requests):
        if step.number == 1 and step.next_number:
            boundaries.begin(step.page)
        else:
            for page in _reread_torn_groups(newest, requests, boundaries, step):
                pages_yielded += 1
                yield _page(listing, page, pages_yielded, expected, started_at, resume_at)
        pages_yielded += 1
        yield _page(listing, step.page, pages_yielded, expected, started_at, resume_at if step.next_number else None)


def _reread_torn_groups(
    listing: Listing[RecordT], requests: PageRequests[RecordT], boundaries: Boundaries, step: Step[RecordT]
) -> Iterator[FetchedPage[RecordT]]:
    """Read torn groups (see boundaries.py) again once they are passed; yield all their records."""
    page = step.page
    is_end = step.number * listing.page_size >= page.total_entries
    torn = boundaries.take(step.number, page, is_end=is_end)
    if not step.next_number:
        torn += boundaries.finish()
    for second in torn:
        group = listing.of_second(second)

        def read(filters: tuple[str, ...], number: int, group: Listing[RecordT] = group) -> FetchedPage[RecordT]:
            return requests.read_aside(group.filtered(filters), number)

        what = f"{listing.resource.name} created at {format_second(second)}"
        yield from group_pages(read, lambda: listing.can_filter_by("id"), listing.page_size, what)


def _page(
    listing: Listing[RecordT],
    page: FetchedPage[RecordT],
    number: int,
    expected: int,
    started_at: datetime | None,
    checkpoint: Checkpoint | None,
) -> Page[RecordT]:
    pages = max(number, listing.page_count(expected))
    return Page(page.records, page.rejected, number, pages, expected, started_at, checkpoint)
