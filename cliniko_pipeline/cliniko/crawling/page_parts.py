"""Reading of a page that Cliniko fails to return, as smaller pages down to single records.

The parts together cover exactly the page. They are read from the last to the first, so that a deletion moves records
only to parts that are still to be read.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

from cliniko_pipeline.cliniko.crawling.listing import Listing, format_second
from cliniko_pipeline.cliniko.crawling.next_links import check_next_link
from cliniko_pipeline.cliniko.decoding.pages import FetchedPage
from cliniko_pipeline.cliniko.records import UNANSWERED, Record, RecordT, RejectedRecord
from cliniko_pipeline.errors import ClinikoUnavailableError

SIZES = (50, 25, 5, 1)
"""Each size divides the previous size, and the first size divides the size of a page."""

PartT = TypeVar("PartT")

FetchPart = Callable[[str, int], FetchedPage[RecordT]]
"""A function that returns a part of a page, by the part's URL and the page's number."""


def read_page_in_parts(
    listing: Listing[RecordT], number: int, fetch: FetchPart[RecordT]
) -> FetchedPage[RecordT] | None:
    """Return the page, with a rejected record for each record that cannot be read even alone.

    Return None if the parts contradict one another. Raise ClinikoUnavailableError if Cliniko returns no other record of
    the resource either.
    """
    return _PageInParts(listing, number, fetch).read()


def split_page(
    fetch: Callable[[int, int], PartT], first: int, beyond: int, sizes: tuple[int, ...] = SIZES
) -> list[PartT]:
    """Return the parts with the entries from `first` up to but excluding `beyond`.

    Entries are counted from 0. `fetch` takes a part's number and size. If `fetch` raises ClinikoUnavailableError,
    smaller parts are tried.
    """
    size, smaller = sizes[0], sizes[1:]
    parts: list[PartT] = []
    for start in reversed(range(first, beyond, size)):
        try:
            read = [fetch(start // size + 1, size)]
        except ClinikoUnavailableError:
            if not smaller:
                raise
            read = split_page(fetch, start, min(beyond, start + size), smaller)
        parts = read + parts
    return parts


_Part = tuple[FetchedPage[RecordT], bool]
"""A part of a page, and whether its records fit the number of entries that it announces."""


@dataclass(frozen=True, slots=True)
class _PageInParts(Generic[RecordT]):
    listing: Listing[RecordT]
    number: int
    fetch: FetchPart[RecordT]

    def read(self) -> FetchedPage[RecordT] | None:
        first, beyond = (self.number - 1) * self.listing.page_size, self.number * self.listing.page_size
        try:
            total = self._request(self.listing, beyond + 1, 1).total_entries
        except ClinikoUnavailableError:
            # Cliniko may fail to return just the record at that place, so request the first record instead.
            total = self._request(self.listing, 1, 1).total_entries
        parts = split_page(partial(self._part, total), first, min(beyond, total))
        return _join_parts(parts, total, self.listing.url(self.number + 1) if total > beyond else None)

    def _request(self, listing: Listing[RecordT], number: int, size: int) -> FetchedPage[RecordT]:
        url = listing.url(number, size)
        part = self.fetch(url, self.number)
        check_next_link(part.next_url, url, listing, number)
        return part

    def _part(self, total: int, number: int, size: int) -> _Part[RecordT]:
        try:
            part = self._request(self.listing, number, size)
        except ClinikoUnavailableError as error:
            if size > 1:
                raise
            reason = f"{UNANSWERED} ({self.listing.describe_place(number)})"
            rejected = [RejectedRecord(self.listing.resource.name, None, reason)]
            return FetchedPage([], rejected, total, None, self._other_page(error).server_date), True
        return part, part.is_consistent(number, size)

    def _other_page(self, error: ClinikoUnavailableError) -> FetchedPage[RecordT]:
        """Return a page with any record of the resource; raise `error` if Cliniko returns none."""
        everything = replace(self.listing, changed_since=None, bounds=())
        for place in (1, 2, self.listing.page_size + 1):
            with suppress(ClinikoUnavailableError):
                page = self._request(everything, place, 1)
                if page.entry_count:
                    return page
        raise error


def _join_parts(parts: list[_Part[RecordT]], total: int, next_url: str | None) -> FetchedPage[RecordT] | None:
    """Return the page made of the parts, with their earliest Date, or None if they disagree."""
    pages = [page for page, _ in parts]
    records = [record for page in pages for record in page.records]
    rejected = [_with_neighbours(record, pages, place) for place, page in enumerate(pages) for record in page.rejected]
    ids = [record.id for record in (*records, *rejected) if record.id is not None]
    is_one_list = all(is_consistent and page.total_entries == total for page, is_consistent in parts)
    if not is_one_list or len(set(ids)) < len(ids):
        return None
    dates = [page.server_date for page in pages if page.server_date is not None]
    date = min(dates) if dates and len(dates) == len(pages) else None
    return FetchedPage(records, rejected, total, next_url, date)


def _with_neighbours(rejected: RejectedRecord, parts: list[FetchedPage[RecordT]], place: int) -> RejectedRecord:
    """Add the neighbours to an unanswered record's reason, because its id is unknown."""
    if not rejected.reason.startswith(UNANSWERED):
        return rejected
    before = [f"after {_describe(part.records[-1])}" for part in parts[:place] if part.records][-1:]
    after = [f"before {_describe(part.records[0])}" for part in parts[place + 1 :] if part.records][:1]
    reason = ", ".join([rejected.reason.removesuffix(")"), *before, *after])
    return RejectedRecord(rejected.resource, None, f"{reason})")


def _describe(record: Record) -> str:
    return f"{record.id} created at {format_second(record.created_at)}"
