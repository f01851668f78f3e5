"""The client of one organization's Cliniko account."""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from statistics import mode
from types import TracebackType
from typing import Any, Self

import httpx

from cliniko_pipeline.cliniko.account_time_zones import time_zones_in
from cliniko_pipeline.cliniko.crawling.crawl import Checkpoint, Page, crawl_pages
from cliniko_pipeline.cliniko.crawling.listing import Listing
from cliniko_pipeline.cliniko.crawling.refusals import Refusals, field_refused
from cliniko_pipeline.cliniko.decoding.pages import FetchedPage, decode_page
from cliniko_pipeline.cliniko.events import Event, PageRead, Reporter, Statistics
from cliniko_pipeline.cliniko.exchange.sender import Access, RequestOptions, Sender
from cliniko_pipeline.cliniko.exchange.throttle import RequestBudget
from cliniko_pipeline.cliniko.records import PATIENTS, RecordT, Resource
from cliniko_pipeline.clocks import ClockDifference
from cliniko_pipeline.daemon_threads import DaemonThreads, wait_for
from cliniko_pipeline.errors import ClinikoPipelineError, ClinikoUnavailableError, FieldRefusedError, TransientError

MAX_ATTEMPTS_PER_PART = 2
"""The number of attempts at each part of a page that Cliniko fails to return in one piece."""
DEFAULT_OPTIONS = RequestOptions()


class ClinikoClient:
    """A context manager that reads one organization's lists. Use it from one thread at a time.

    `budget` is asked before every attempt. `on_event` is called with progress, by one thread at a time. `compare_clock`
    returns how far a response's Date is ahead of the database's clock. If this difference is too large in the first
    response of a crawl, the crawl raises ClockSkewError.

    Raises CredentialsFormatError or SettingsError if the API key or the User-Agent cannot be sent in a header.
    No error, log line or representation contains the API key, a response's body or a query.
    """

    def __init__(
        self,
        organization_id: str,
        access: Access,
        budget: RequestBudget,
        *,
        transport: httpx.BaseTransport | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
        compare_clock: Callable[[datetime], ClockDifference] | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        self._organization_id = organization_id
        self._api_url = access.api_url.rstrip("/")
        self._budget = budget
        self._options = options
        self._reporter = Reporter(on_event)
        self._sender = Sender(access, budget, transport, options, self._reporter)
        self._compare_clock = compare_clock
        self._clock_difference: ClockDifference | None = None
        self._clock_lock = threading.Lock()
        self._threads = DaemonThreads(options.max_pages_in_flight, "cliniko-page")
        self.refusals = Refusals()

    def __repr__(self) -> str:
        return f"<ClinikoClient of organization {self._organization_id} at {self._api_url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except TransientError:
            # If there is an error already, do not replace it by the failure to save the budget.
            if error is None:
                raise

    def close(self) -> None:
        """Close the connections and abort requests in flight. Closing twice has no effect.

        Raises DatabaseUnavailableError if a shared budget cannot be updated.
        """
        self._sender.close()
        self._threads.close()
        self._budget.close()

    @property
    def statistics(self) -> Statistics:
        """The work of this client so far."""
        return self._reporter.statistics

    @property
    def clock_difference(self) -> ClockDifference | None:
        """The largest difference of Cliniko's clock from the database's clock, if known."""
        return self._clock_difference

    def crawl(
        self,
        resource: Resource[RecordT],
        *,
        changed_since: datetime | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Iterator[Page[RecordT]]:
        """Yield the pages of a list, including archived, cancelled and deleted records.

        With `changed_since`, an aware instant of the server's clock, the crawl yields only records changed at or after
        that instant. `checkpoint` is where an earlier crawl with the same `resource` and `changed_since` broke off. The
        records come in no particular order, and some come twice.

        Raises CredentialsError (AuthenticationError, PermissionDeniedError), TransientError (ClinikoUnavailableError,
        RateLimitedError), DataError (RequestRejectedError, UnexpectedResponseError, ForeignLinkError), ClockSkewError.
        """
        is_compared = False

        def fetch(url: str, number: int, what: str, attempts: int | None = None) -> FetchedPage[RecordT]:
            nonlocal is_compared
            page = self._fetch(url, resource, what, attempts)
            # Check page 1 in any case, because the next crawl's `changed_since` is computed from the Date of this page.
            if not is_compared or number == 1:
                difference = self._note_clock(page.server_date)
                if difference is not None:
                    difference.require_allowed()
                    is_compared = True
            return page

        def request(url: str, number: int) -> Callable[[], FetchedPage[RecordT]]:
            page = self._threads.submit(lambda: fetch(url, number, f"{resource.name}, page {number}"))
            return lambda: wait_for(page)

        def fetch_part(url: str, number: int) -> FetchedPage[RecordT]:
            what = f"{resource.name}, page {number}, in parts"
            return wait_for(self._threads.submit(lambda: fetch(url, number, what, MAX_ATTEMPTS_PER_PART)))

        listing = Listing(self._api_url, resource, changed_since, refusals=self.refusals)
        in_flight = self._options.max_pages_in_flight
        pages = crawl_pages(listing, request, checkpoint, max_in_flight=in_flight, fetch_part=fetch_part)
        while True:
            with self._name_organization():
                page = next(pages, None)
            if page is None:
                return
            self._report(page, resource.name)
            yield page

    def total_entries(
        self,
        resource: Resource[Any],
        *,
        created_before: datetime | None = None,
        changed_since: datetime | None = None,
    ) -> int:
        """Return the number of records in a list, or of those created before or changed since an instant.

        The instants are aware, and of the server's clock. Costs one request. Raises the errors of `crawl`. Raises
        FieldRefusedError if Cliniko refuses to filter by `created_before`. Without the filter by `changed_since`, all
        records are counted.
        """
        what = f"counting {resource.name}"
        return self._first_entry(resource, what, created_before, changed_since).total_entries

    def validate(self) -> None:
        """Check with one request that the API key works; raise the errors of `crawl` if not."""
        self._first_entry(PATIENTS, "checking the API key")

    def time_zone(self) -> str | None:
        """Return the most frequent IANA time zone of the clinic's businesses.

        If no business has one, return the time zone in the account's settings. Return None if Cliniko sends no known
        time zone, refuses the requests or does not respond.
        """
        for path in ("businesses", "settings"):
            with suppress(ClinikoPipelineError):
                names = self._sender.get(f"{self._api_url}/{path}", lambda body, _date: time_zones_in(body), path)
                if names:
                    return mode(names)
        return None

    def _first_entry(
        self,
        resource: Resource[RecordT],
        what: str,
        created_before: datetime | None = None,
        changed_since: datetime | None = None,
    ) -> FetchedPage[RecordT]:
        listing = Listing(self._api_url, resource, changed_since, refusals=self.refusals)
        if created_before is not None:
            listing = listing.before(created_before)
        with self._name_organization():
            while True:
                if created_before is not None and listing.refused_filters:
                    raise field_refused(what, "filter", listing.refused_filters[0])
                try:
                    page = self._fetch_one_entry(listing, what)
                except FieldRefusedError as error:
                    if not self.refusals.add(resource.name, error.use, error.field):
                        raise
                    continue
                self._note_clock(page.server_date)
                return page

    def _fetch_one_entry(self, listing: Listing[RecordT], what: str) -> FetchedPage[RecordT]:
        try:
            return self._fetch(listing.url(1, per_page=1), listing.resource, what)
        except ClinikoUnavailableError as error:
            # Cliniko may fail to return just the first record, so request the second one.
            with suppress(ClinikoUnavailableError):
                return self._fetch(listing.url(2, per_page=1), listing.resource, what, MAX_ATTEMPTS_PER_PART)
            raise error from None

    def _fetch(
        self, url: str, resource: Resource[RecordT], what: str, max_attempts: int | None = None
    ) -> FetchedPage[RecordT]:
        return self._sender.get(url, lambda body, date: decode_page(resource, body, date), what, max_attempts)

    def _note_clock(self, date: datetime | None) -> ClockDifference | None:
        """Compare a new response's Date with the database's clock; keep the largest difference."""
        if date is None or self._compare_clock is None:
            return None
        found = self._compare_clock(date)
        with self._clock_lock:
            if self._clock_difference is None or abs(found.ahead) > abs(self._clock_difference.ahead):
                self._clock_difference = found
        return found

    @contextmanager
    def _name_organization(self) -> Generator[None]:
        try:
            yield
        except ClinikoPipelineError as error:
            raise type(error)(f"Organization {self._organization_id}: {error}") from None

    def _report(self, page: Page[RecordT], name: str) -> None:
        records = len(page.records)
        self._reporter.count(pages=1, records=records)
        if self._reporter.has_listener:
            left = self._budget.left()
            self._reporter.emit(PageRead(name, page.number, page.pages, records, page.total_entries, left))
