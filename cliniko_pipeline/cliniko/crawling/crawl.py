"""A crawl of a list that changes while it is read, without losing a record.

Pages are offsets into a live list. Read from the front, a deletion would move the record after the page boundary to a
page that was already read. So the first page, which announces the number of entries, is followed by the last page and
then backwards: deletions move records towards the pages still to be read. If the list got shorter, the first page is
read again at the end (backwards.py).

That holds while nothing is added to the list. So all pages but the first are bounded: they hold only records with time
stamps two minutes before the first answer, because a server's clock may be set back. Newer records are read last, and
only where the number of entries shows that there may be any. A clock set back further can still add older records:
then the list is found longer, and as many pages are read again as the additions can have moved.
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
    """Where a crawl resumes, in any process: at `page`, then at those before it; 0 for the newest records only.

    `started_at` is the server's clock when the crawl began, None if unknown; later records do not belong to the crawl.
    `total_entries` is the number of entries the list would have without deletions since then.
    """

    started_at: datetime | None
    page: int
    total_entries: int


@dataclass(frozen=True, slots=True)
class Page(Generic[RecordT]):
    """One page of a crawl.

    `number` counts the pages from 1 in the order of reading; `pages` is their expected number. `total_entries` counts
    the list at the crawl's start. `started_at` is the server's clock (UTC) at the first answer: less an overlap, the
    cursor of a later crawl. `checkpoint` is where the crawl resumes after this page, None after the last one.
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
    """Yield a list's pages from the start or a checkpoint, with up to `max_in_flight` requests at a time.

    Yields every record that is in the list at the start and is neither deleted nor changed, some of them twice. Costs
    one request a page. A list that got shorter costs one more for the first page, and one for each page of the newest
    records. `fetch_part` requests parts of a page for which `request` raised ClinikoUnavailableError; a record for
    which it raises that, too, is rejected if Cliniko answers others.

    Raises ForeignLinkError for a `next` link that leaves the API URL. Raises UnexpectedResponseError for a link to the
    wrong page and for a list that contradicts itself repeatedly: incomplete pages, an end that does not fit the
    announced number of entries, growth where nothing can be added.
    """
    requests = PageRequests(request, max_in_flight, fetch_part)
    if checkpoint is not None:
        try:
            yield from _crawl_rest(listing, requests, checkpoint, Boundaries(), is_resumed=True)
        except UnexpectedResponseError:
            if listing.can_filter_by("created_at"):
                raise
            # The records of the second at the checkpoint cannot be requested by themselves.
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
        # The checkpoint does not hold how much of the second at the page boundary was read: read that page again.
        last_number = min(last_number + 1, max(1, listing.page_count(expected)))
    number = listing.page_count(expected) - last_number + 1
    left: Checkpoint | None = checkpoint
    # Nothing is added to this part any more: its time is over by every clock of the server.
    older = listing if started_at is None else listing.before(started_at - MAX_CLOCK_SKEW)
    for step in read_backwards(older, requests, last_number, expected, first_again=first_again):
        expected = step.expected
        for page in _reread_seconds(older, requests, boundaries, step):
            number += 1
            yield _page(listing, page, number, expected, started_at, left)
        number += 1
        has_newest = step.is_shorter and started_at is not None and older.is_bounded
        left = Checkpoint(started_at, step.next_number, expected) if step.next_number or has_newest else None
        yield _page(listing, step.page, number, expected, started_at, left)
    if left is None or started_at is None or not older.is_bounded:
        return
    newest, boundaries = listing.newest(started_at), Boundaries()
    for step in read_growing(newest, requests):
        if step.number == 1 and step.next_number:
            boundaries.begin(step.page)
        else:
            for page in _reread_seconds(newest, requests, boundaries, step):
                number += 1
                yield _page(listing, page, number, expected, started_at, left)
        number += 1
        yield _page(listing, step.page, number, expected, started_at, left if step.next_number else None)


def _reread_seconds(
    listing: Listing[RecordT], requests: PageRequests[RecordT], boundaries: Boundaries, step: Step[RecordT]
) -> Iterator[FetchedPage[RecordT]]:
    """Read again each second that the crawl has passed and of which it may have missed records."""
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
