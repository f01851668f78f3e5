"""The client: one organization's lists, read over HTTP with its API key.

Belongs here: sending, the loop of attempts, and the errors an operator reads. Does not: decisions (retry.py),
links (next_links.py), waiting for one's turn (throttle.py), or which host may be talked to (shards.py).
"""

import random
import re
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from statistics import mode
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from cliniko_pipeline.cliniko.account_time_zones import time_zones_in
from cliniko_pipeline.cliniko.crawling.crawl import Checkpoint, Page, crawl_pages
from cliniko_pipeline.cliniko.crawling.listing import Listing
from cliniko_pipeline.cliniko.crawling.page_requests import MAX_PAGES_IN_FLIGHT
from cliniko_pipeline.cliniko.crawling.refusals import Refusals, Use
from cliniko_pipeline.cliniko.decoding.pages import FetchedPage, decode_page
from cliniko_pipeline.cliniko.events import Event, PageRead, Retrying, Waiting
from cliniko_pipeline.cliniko.exchange.retry import Fail, Retry, Succeed, TransportFailure, decide, server_time
from cliniko_pipeline.cliniko.exchange.throttle import RequestBudget
from cliniko_pipeline.cliniko.exchange.transport import CurlTransport, Limits
from cliniko_pipeline.cliniko.records import PATIENTS, RecordT, Resource
from cliniko_pipeline.clocks import CLINIKO, ClockDifference
from cliniko_pipeline.daemon_threads import DaemonThreads, wait_for
from cliniko_pipeline.errors import (
    ClinikoPipelineError,
    ClinikoUnavailableError,
    CredentialsFormatError,
    FieldRefusedError,
    RateLimitedError,
    SettingsError,
    TransientError,
)
from cliniko_pipeline.hosts import is_loopback

DEFAULT_MAX_ATTEMPTS = 6
ATTEMPTS_AT_A_PART = 2
"""At each of the smaller pages that a page is read in when Cliniko does not answer it."""
DEFAULT_LIMITS = Limits()
"""An answer that still trickles in after two minutes counts as a time-out."""
REFUSALS = frozenset({400, 422})
LONGEST_REFUSAL = 2_000
_WORD = re.compile(rb"[a-z_]+")
_NOT_POSSIBLE = re.compile(rb"([a-z_]+)\W+is not (?:a )?(sort|filter)")
WORTH_TELLING_SECONDS = 0.5
"""A shorter wait for the request budget is no event."""
LONGEST_WAIT_SECONDS = 900.0
"""What the waits between the attempts at one request may come to, those for a full budget not counted."""
AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a client has done so far. `requests` counts every attempt, `records` only the understood ones."""

    requests: int = 0
    retries: int = 0
    rate_limited: int = 0
    seconds_waited: float = 0.0
    pages: int = 0
    records: int = 0

    def plus(self, **more: float) -> "Statistics":
        """Return these statistics with the named numbers added."""
        return replace(self, **{name: getattr(self, name) + number for name, number in more.items()})


class ClinikoClient:
    """Reads one organization's lists. Use as a context manager, from one thread at a time.

    `api_url` is taken as it is: resolve_api_url decides which hosts may see a key. `budget` is asked before every
    single attempt. `sleep` is used between attempts and may raise to interrupt; `clock` is monotonic, `rng` spreads
    the waits. Up to `max_pages_in_flight` pages are in flight. `on_event` is called with progress, by one thread
    at a time. Where there is a `database_clock`, no list is read whose first answer has a Date that differs from it by
    more than `max_clock_skew`.

    Raises CredentialsFormatError for an API key that no HTTP header can carry, and SettingsError for such a
    User-Agent. No error, log line or representation holds the API key, an answer's body or a query.
    """

    def __init__(  # noqa: PLR0913 -- the seams for tests and for interruption, each with a default
        self,
        organization_id: str,
        api_key: str,
        api_url: str,
        user_agent: str,
        budget: RequestBudget,
        *,
        transport: httpx.BaseTransport | None = None,
        limits: Limits = DEFAULT_LIMITS,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        max_pages_in_flight: int = MAX_PAGES_IN_FLIGHT,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        database_clock: Callable[[], datetime] | None = None,
        max_clock_skew: timedelta = timedelta.max,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        self._organization_id = organization_id
        self._api_url = api_url.rstrip("/")
        self._budget = budget
        self._max_attempts = max(1, max_attempts)
        self._sleep = sleep
        self._clock = clock
        self._wall_clock = wall_clock
        self._rng = rng or random.Random()  # noqa: S311 -- spreads waits, protects nothing
        self._database_clock = database_clock
        self._max_clock_skew = max_clock_skew
        self._clock_difference: ClockDifference | None = None
        self._on_event = on_event
        self._statistics = Statistics()
        self._headers = httpx.Headers(
            {
                "Authorization": f"Basic {b64encode(f'{_sendable_key(api_key)}:'.encode()).decode()}",
                "Accept": "application/json",
                "User-Agent": _sendable_user_agent(user_agent),
            }
        )
        # A proxy named in the environment is for the world outside; it cannot reach this machine's loopback.
        self._transport = transport or CurlTransport(limits, uses_proxies=not is_loopback(httpx.URL(api_url).host))
        self._is_closed = False
        self.refusals = Refusals()
        self._was_accepted = False
        self._max_pages_in_flight = max_pages_in_flight
        self._threads = DaemonThreads(max_pages_in_flight, "cliniko-page")
        self._lock = threading.Lock()

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
            if error is None:
                raise
            # What went wrong first says more than that nobody could be told.

    def close(self) -> None:
        """Close the connections; ends what is under way. Closing twice is fine.

        Raises DatabaseUnavailableError where a budget that is shared cannot be told what was answered.
        """
        self._is_closed = True
        self._transport.close()
        self._threads.close()
        self._budget.close()

    @property
    def statistics(self) -> Statistics:
        """What this client has done so far."""
        return self._statistics

    @property
    def clock_difference(self) -> ClockDifference | None:
        """How far Cliniko's clock was ahead of the database's, at the most; None: it told no time, or was not asked."""
        return self._clock_difference

    def crawl(
        self,
        resource: Resource[RecordT],
        *,
        changed_since: datetime | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Iterator[Page[RecordT]]:
        """Yield the pages of a list, archived, cancelled and deleted records included, the first one first.

        With `changed_since`, an aware instant of the server's clock, only what was changed then or later. `checkpoint`
        is where an earlier crawl of the same kind broke off. Records come in no order, and twice where others vanished.
        A page that is not answered is read in smaller ones, if Cliniko answers the list at all; a record that is not
        answered alone is rejected. Raises CredentialsError (AuthenticationError, PermissionDeniedError), TransientError
        (ClinikoUnavailableError, RateLimitedError), DataError (RequestRejectedError, UnexpectedResponseError,
        ForeignLinkError), ClockSkewError.
        """
        is_compared = False

        def fetch(url: str, number: int, what: str, attempts: int | None = None) -> FetchedPage[RecordT]:
            nonlocal is_compared
            page = self._fetch(url, resource, what, attempts)
            # The answers that a crawl begins with tell where the next one starts from.
            if not is_compared or number == 1:
                difference = self._compare_clocks(page.server_date)
                if difference is not None:
                    difference.require_allowed()
                    is_compared = True
            return page

        def begin(url: str, number: int) -> Callable[[], FetchedPage[RecordT]]:
            page = self._threads.submit(lambda: fetch(url, number, f"{resource.name}, page {number}"))
            return lambda: wait_for(page)

        def ask_small(url: str, number: int) -> FetchedPage[RecordT]:
            what = f"{resource.name}, page {number}, in parts"
            return wait_for(self._threads.submit(lambda: fetch(url, number, what, ATTEMPTS_AT_A_PART)))

        listing = Listing(self._api_url, resource, changed_since, refusals=self.refusals)
        pages = crawl_pages(listing, begin, checkpoint, max_in_flight=self._max_pages_in_flight, fetch_part=ask_small)
        while True:
            with self._naming_the_organization():
                page = next(pages, None)
            if page is None:
                return
            self._told_of(page, resource.name)
            yield page

    def total_entries(self, resource: Resource[Any], *, created_before: datetime | None = None) -> int:
        """How many records the list holds, or its part from before an instant of the server's clock (aware).

        Costs one request; raises as `crawl` does, and FieldRefusedError for a part that Cliniko refuses to filter by.
        """
        return self._first_entry(resource, f"counting {resource.name}", created_before).total_entries

    def validate(self) -> None:
        """Find out with one cheap request whether the key opens the account; raises as `crawl` does if not."""
        self._first_entry(PATIENTS, "checking the API key")

    def time_zone(self) -> str | None:
        """Return the IANA name of the time zone of most of the clinic's businesses, or else of its settings.

        None where Cliniko names none that is known here, refuses the requests or does not answer.
        """
        for path in ("businesses", "settings"):
            with suppress(ClinikoPipelineError):
                url = f"{self._api_url}/{path}"
                if found := self._ask(url, lambda answer: time_zones_in(answer.body), path, self._max_attempts):
                    return mode(found)
        return None

    def _first_entry(
        self, resource: Resource[RecordT], what: str, created_before: datetime | None = None
    ) -> FetchedPage[RecordT]:
        listing = Listing(self._api_url, resource, refusals=self.refusals)
        if created_before is not None:
            listing = listing.before(created_before)
        with self._naming_the_organization():
            while True:
                if created_before is not None and listing.refused_filters:
                    # A part of the list that cannot be asked for is not counted.
                    raise _field_refused(what, "filter", listing.refused_filters[0])
                try:
                    page = self._one_entry(listing, what)
                except FieldRefusedError as error:
                    if not self.refusals.add(resource.name, error.use, error.field):
                        raise
                    continue
                self._compare_clocks(page.server_date)
                return page

    def _one_entry(self, listing: Listing[RecordT], what: str) -> FetchedPage[RecordT]:
        try:
            return self._fetch(listing.url(1, per_page=1), listing.resource, what)
        except ClinikoUnavailableError as error:
            # It may be the first record alone that is not answered.
            with suppress(ClinikoUnavailableError):
                return self._fetch(listing.url(2, per_page=1), listing.resource, what, ATTEMPTS_AT_A_PART)
            raise error from None

    def _compare_clocks(self, cliniko: datetime | None) -> ClockDifference | None:
        """Compare the time of an answer that has just come with the database's; keep the largest difference."""
        if cliniko is None or self._database_clock is None:
            return None
        found = ClockDifference(CLINIKO, cliniko - self._database_clock(), self._max_clock_skew)
        with self._lock:
            if self._clock_difference is None or abs(found.ahead) > abs(self._clock_difference.ahead):
                self._clock_difference = found
        return found

    @contextmanager
    def _naming_the_organization(self) -> Generator[None]:
        try:
            yield
        except ClinikoPipelineError as error:
            raise type(error)(f"Organization {self._organization_id}: {error}") from None

    def _told_of(self, page: Page[RecordT], name: str) -> None:
        records = len(page.records)
        self._count(pages=1, records=records)
        if self._on_event:
            left = self._budget.left()
            self._emit(PageRead(name, page.number, page.pages, records, page.total_entries, left))

    def _fetch(
        self,
        url: str,
        resource: Resource[RecordT],
        what: str,
        attempts: int | None = None,
    ) -> FetchedPage[RecordT]:
        """Return a page, in as many attempts as it takes and is reasonable, or in no more than so many."""

        def read(answer: _Answer) -> FetchedPage[RecordT]:
            return decode_page(resource, answer.body, server_time(answer.headers))

        most = min(attempts or self._max_attempts, self._max_attempts)
        return self._ask(url, read, what, most)

    def _ask(self, url: str, read: "Callable[[_Answer], AnswerT]", what: str, most: int) -> AnswerT:
        causes: Counter[int | TransportFailure] = Counter()
        attempt, waits, announced = 0, 0.0, 0.0
        while True:
            attempt += 1
            outcome = self._attempt(url, read, attempt, announced)
            if not isinstance(outcome, _Failed):
                return outcome
            causes[outcome.result] += 1
            if outcome.refused is not None:
                raise _field_refused(f"{what}, {_named(outcome.result)}", *outcome.refused)
            if isinstance(outcome.decision, Fail):
                raise outcome.decision.error(f"{what}, {_named(outcome.result)}: {outcome.decision.reason}")
            waits += outcome.decision.seconds
            if attempt >= most or waits > LONGEST_WAIT_SECONDS:
                raise _exhausted(outcome.decision.error, what, causes)
            announced = self._wait(outcome.decision, _named(outcome.result), what, attempt)

    def _attempt(
        self, url: str, read: "Callable[[_Answer], AnswerT]", attempt: int, announced: float
    ) -> "AnswerT | _Failed":
        with self._budget.request() as waited:
            self._tell_waited(waited, announced)
            answer = self._send(url)
            now = self._wall_clock()
            decision = decide(
                answer.result,
                answer.headers,
                attempt=attempt,
                now=now,
                rng=self._rng,
                was_accepted=self._was_accepted,
            )
            if isinstance(decision, Retry) and decision.everyone:
                # Before it counts as answered: nobody that waits for it may go first.
                self._budget.block(decision.seconds)
        if not isinstance(decision, Succeed):
            refused = _refused_field(url, answer.words) if isinstance(decision, Fail) and answer.words else None
            return _Failed(answer.result, decision, refused)
        self._was_accepted = True
        try:
            return read(answer)
        except ClinikoUnavailableError:
            failure = TransportFailure.UNREADABLE_BODY
            return _Failed(failure, decide(failure, answer.headers, attempt=attempt, now=now, rng=self._rng))

    def _send(self, url: str) -> "_Answer":
        if self._is_closed:
            raise RuntimeError("The client is closed")
        self._count(requests=1)
        try:
            # Not by an httpx.Client: its redirects, cookies and rounds of authentication, of which none is wanted, cost
            # as much as reading the page.
            response = self._transport.handle_request(httpx.Request("GET", url, headers=self._headers))
            response.read()
        except httpx.RequestError as error:
            # Returned, not raised: httpx's errors carry the request with its Authorization header, and whatever
            # were raised here would carry the error in its chain.
            return _Answer(_failure_of(error))
        # What an error says may hold anything: of a refusal only its words are looked at, for names that were sent.
        body = response.content if response.is_success else b""
        words = _words(response.content[:LONGEST_REFUSAL]) if response.status_code in REFUSALS else frozenset[str]()
        return _Answer(response.status_code, response.headers, body, words)

    def _tell_waited(self, waited: float, announced: float) -> None:
        if waited:
            self._count(seconds_waited=waited)
        if waited - announced >= WORTH_TELLING_SECONDS:
            self._emit(Waiting(waited - announced, "the request budget was used up"))

    def _wait(self, retry: Retry, cause: str, what: str, attempt: int) -> float:
        """Wait before the next attempt, or let its turn come later; return the seconds announced of the latter."""
        self._count(retries=1)
        if retry.everyone:
            self._count(rate_limited=1)
            self._emit(Waiting(retry.seconds, "Cliniko asked to wait (429)"))
            return retry.seconds
        self._emit(Retrying(what, attempt, retry.seconds, cause))
        self._sleep(retry.seconds)
        self._count(seconds_waited=retry.seconds)
        return 0.0

    def _emit(self, event: Event) -> None:
        if self._on_event:
            with self._lock:
                self._on_event(event)

    def _count(self, **more: float) -> None:
        with self._lock:
            self._statistics = self._statistics.plus(**more)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one request brought: the status or the failure, and the body of a success."""

    result: int | TransportFailure
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    body: bytes = field(default=b"", repr=False)
    words: frozenset[str] = field(default=frozenset(), repr=False)


@dataclass(frozen=True, slots=True)
class _Failed:
    result: int | TransportFailure
    decision: Retry | Fail
    refused: tuple[Use, str] | None = None


def _words(refusal: bytes) -> frozenset[str]:
    named = _NOT_POSSIBLE.search(refusal)
    return frozenset(each.decode() for each in (named.groups() if named else _WORD.findall(refusal)))


def _refused_field(url: str, words: frozenset[str]) -> tuple[Use, str] | None:
    """Return which of the fields that were sent a refusal names, and what it was sent for."""
    parameters = httpx.URL(url).params
    filters = {each.partition(":")[0] for each in parameters.get_list("q[]")}
    sorts = {each.partition(":")[0] for each in parameters.get("sort", "").split(",")}
    named = sorted(words & (filters | sorts))
    if len(named) != 1:
        return None
    is_of_sort = named[0] in sorts and (named[0] not in filters or any(each.startswith("sort") for each in words))
    return ("sort" if is_of_sort else "filter"), named[0]


def _field_refused(what: str, use: Use, name: str) -> FieldRefusedError:
    error = FieldRefusedError(f"{what}: Cliniko refuses to {use} this list by {name}")
    error.use, error.field = use, name
    return error


_FAILURES: tuple[tuple[type[httpx.RequestError], TransportFailure], ...] = (
    # In this order: a connect time-out is a time-out, and all of them are request errors.
    (httpx.TimeoutException, TransportFailure.TIME_OUT),
    (httpx.ConnectError, TransportFailure.UNREACHABLE),
    (httpx.ProxyError, TransportFailure.UNREACHABLE),
    (httpx.DecodingError, TransportFailure.UNREADABLE_BODY),
    (httpx.RequestError, TransportFailure.CONNECTION_LOST),
)


def _failure_of(error: httpx.RequestError) -> TransportFailure:
    return next(failure for kind, failure in _FAILURES if isinstance(error, kind))


_WHAT_NEXT: Mapping[type[TransientError], str] = {
    ClinikoUnavailableError: "syncs are tried again by themselves; if it stays, check whether Cliniko reports an "
    "outage, and this machine's way to the organization's API URL (name service, firewall, proxy)",
    RateLimitedError: "something else seems to use the same Cliniko user's API: give the pipeline a user of its own, "
    "or lower CLINIKO_REQUESTS_PER_MINUTE",
}


def _exhausted(error: type[TransientError], what: str, causes: Counter[int | TransportFailure]) -> TransientError:
    total = causes.total()
    told = ", ".join(_named(result, times) for result, times in causes.most_common())
    return error(f"{what}: given up after {total} attempt{'s' if total > 1 else ''} ({told}): {_WHAT_NEXT[error]}")


def _named(result: int | TransportFailure, times: int | None = None) -> str:
    """Return how messages call a result: "answer 502", or counted, "2 answers 502" and "3 time-outs"."""
    noun, status = (result.value, "") if isinstance(result, TransportFailure) else ("answer", f" {result}")
    return f"{noun}{status}" if times is None else f"{times} {noun}{'s' if times > 1 else ''}{status}"


def _sendable_key(api_key: str) -> str:
    # Basic authentication ends the user name at the first colon.
    if not re.fullmatch(r"[!-9;-~]+", api_key):
        raise CredentialsFormatError(
            "The API key is blank or has signs no Cliniko key has: store it exactly as Cliniko shows it"
        )
    return api_key


def _sendable_user_agent(user_agent: str) -> str:
    if not re.fullmatch(r"[!-~](?:[ -~]*[!-~])?", user_agent):
        raise SettingsError(
            "The User-Agent must be plain ASCII on one line: check that CLINIKO_CONTACT_EMAIL is an e-mail address"
        )
    return user_agent
