"""The requests for a list's pages. Several pages may be in flight.

A page is requested again if it does not have the number of records that it should have. A page that was requested
before the previous page arrived is also requested again if the two pages announce different numbers of entries.
"""

from collections.abc import Callable
from typing import Generic

from cliniko_pipeline.cliniko.crawling.listing import Listing
from cliniko_pipeline.cliniko.crawling.next_links import check_next_link
from cliniko_pipeline.cliniko.crawling.page_parts import FetchPart, read_page_in_parts
from cliniko_pipeline.cliniko.decoding.pages import FetchedPage
from cliniko_pipeline.cliniko.records import RecordT
from cliniko_pipeline.errors import ClinikoUnavailableError, FieldRefusedError, UnexpectedResponseError

MAX_CONTRADICTIONS = 10
"""The number of contradictions that a crawl tolerates, such as growth of a bounded list."""
MAX_PAGES_IN_FLIGHT = 8
"""A crawl that breaks off loses up to this many pages in flight, and as many held back."""
SINGLE_PAGES_AFTER_A_CHANGE = 4
"""The number of pages requested one by one after a change, because another may follow soon."""

RequestPage = Callable[[str, int], Callable[[], FetchedPage[RecordT]]]
"""A function that requests a page by URL and number, and returns a function to await it.

A crawl may end without calling the returned function.
"""


class PageRequests(Generic[RecordT]):
    """The requests of one crawl, which reads the pages of a list backwards."""

    def __init__(
        self, request: RequestPage[RecordT], max_in_flight: int, fetch_part: FetchPart[RecordT] | None = None
    ) -> None:
        self._request = request
        self._fetch_part = fetch_part
        self._max_in_flight = max_in_flight
        self._contradictions = 0
        self._single_pages = 1  # The page that is read first announces the number of entries.
        self._in_flight: dict[str, tuple[int, Callable[[], FetchedPage[RecordT]]]] = {}
        self._last_total: int | None = None
        self.pages_read = 0
        self.requested_after = 0
        """The number of pages that had been read when the latest page was requested."""

    @property
    def has_pages_in_flight(self) -> bool:
        """Whether pages are in flight. All of them were requested before the latest page arrived."""
        return bool(self._in_flight)

    def discard_pages_in_flight(self) -> None:
        """Discard the pages in flight after a change; request the next pages one by one."""
        self._in_flight.clear()
        self._single_pages = SINGLE_PAGES_AFTER_A_CHANGE

    def read(self, listing: Listing[RecordT], number: int, ahead: int = 0) -> FetchedPage[RecordT]:
        """Return a page, and request up to `ahead` of the pages before it."""

        def fetch(url: str) -> FetchedPage[RecordT]:
            try:
                return self._await_page(listing, url, number, ahead)
            except ClinikoUnavailableError as error:
                # The pages in flight may show an older state of the list than the parts will.
                self.discard_pages_in_flight()
                self.requested_after = self.pages_read
                return self._read_in_parts(listing, number, error)

        page = self._read_consistent(listing, number, fetch)
        self._last_total = page.total_entries
        self.pages_read += 1
        return page

    def read_aside(self, listing: Listing[RecordT], number: int) -> FetchedPage[RecordT]:
        """Return a page of another list, without effect on the pages in flight."""

        def fetch(url: str) -> FetchedPage[RecordT]:
            try:
                page = self._request(url, number)()
            except ClinikoUnavailableError as error:
                page = self._read_in_parts(listing, number, error)
            if not listing.can_filter_by("created_at"):
                raise UnexpectedResponseError(
                    f"{listing.resource.name}: Cliniko returns records created in the same second in no fixed order,"
                    " and refuses to filter by created_at, so that some may be missed. Nothing was marked as deleted:"
                    " the next sync tries again"
                )
            return page

        return self._read_consistent(listing, number, fetch)

    def count_contradiction(self, listing: Listing[RecordT], number: int) -> None:
        """Count a contradiction; raise UnexpectedResponseError after too many of them."""
        self._contradictions += 1
        if self._contradictions > MAX_CONTRADICTIONS:
            raise UnexpectedResponseError(
                f"{listing.resource.name}, page {number}: the list does not have the number of entries it announces, "
                "or keeps changing: try again later, and report this to Cliniko if the error persists"
            )

    def _read_consistent(
        self, listing: Listing[RecordT], number: int, fetch: Callable[[str], FetchedPage[RecordT]]
    ) -> FetchedPage[RecordT]:
        while True:
            url = listing.url(number)
            try:
                page = fetch(url)
            except FieldRefusedError as error:
                if not listing.refusals.add(listing.resource.name, error.use, error.field):
                    raise
                # Discard the pages in flight, because their URLs contain the refused field, too.
                self._in_flight.clear()
                continue
            check_next_link(page.next_url, url, listing, number)
            if page.is_consistent(number, listing.page_size):
                return page
            # Request the page again, because Cliniko may count the entries before a change and select them after it.
            self.count_contradiction(listing, number)

    def _read_in_parts(
        self, listing: Listing[RecordT], number: int, error: ClinikoUnavailableError
    ) -> FetchedPage[RecordT]:
        """Read a page in parts until the parts agree; raise `error` if no record can be read."""
        if self._fetch_part is None:
            raise error
        while True:
            try:
                page = read_page_in_parts(listing, number, self._fetch_part)
            except ClinikoUnavailableError:
                raise error from None
            if page is not None:
                return page
            self.count_contradiction(listing, number)

    def _await_page(self, listing: Listing[RecordT], url: str, number: int, ahead: int) -> FetchedPage[RecordT]:
        was_in_flight = url in self._in_flight
        self.requested_after, wait = self._in_flight.pop(url, None) or (self.pages_read, self._request(url, number))
        self._request_ahead(listing, number, ahead)
        page = wait()
        if page.total_entries != self._last_total:
            # The list has changed, and Cliniko may have selected the pages in flight before the change.
            self._in_flight.clear()
            if self._last_total is not None:
                self.discard_pages_in_flight()
            if was_in_flight:
                self.requested_after = self.pages_read
                return self._request(url, number)()
        return page

    def _request_ahead(self, listing: Listing[RecordT], number: int, ahead: int) -> None:
        count = 0 if self._single_pages else min(ahead, self._max_in_flight - 1)
        self._single_pages = max(0, self._single_pages - 1)
        for before, url in listing.urls(range(number - 1, number - 1 - count, -1)):
            if url not in self._in_flight:
                self._in_flight[url] = self.pages_read, self._request(url, before)
