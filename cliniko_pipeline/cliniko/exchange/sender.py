"""Requests with an account's API key, repeated until they succeed or finally fail.

retry.py decides after each attempt, transport.py sends one request, and throttle.py defines the request budget.
"""

import random
import re
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import httpx

from cliniko_pipeline.cliniko.crawling.page_requests import MAX_PAGES_IN_FLIGHT
from cliniko_pipeline.cliniko.crawling.refusals import Use, field_refused, find_refused_field
from cliniko_pipeline.cliniko.events import Reporter, Retrying, Waiting
from cliniko_pipeline.cliniko.exchange.retry import (
    Fail,
    Retry,
    Succeed,
    TransportFailure,
    back_off,
    decide,
    server_time,
)
from cliniko_pipeline.cliniko.exchange.throttle import RequestBudget
from cliniko_pipeline.cliniko.exchange.transport import CurlTransport, Limits
from cliniko_pipeline.errors import (
    ClinikoUnavailableError,
    CredentialsFormatError,
    RateLimitedError,
    SettingsError,
    TransientError,
)

DEFAULT_MAX_ATTEMPTS = 6
MIN_REPORTED_WAIT_SECONDS = 0.5
"""A shorter wait for the request budget is not reported as an event."""
MAX_WAIT_SECONDS = 900.0
"""The limit of the sum of the waits that retry.py decides on for one request."""
_REFUSAL_STATUSES = frozenset({400, 422})

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class Access:
    """The access to an account's API. The URL comes from resolve_api_url, which checks its host."""

    api_key: str = field(repr=False)
    api_url: str
    user_agent: str

    def headers(self) -> httpx.Headers:
        """Return the headers of each request.

        Raises CredentialsFormatError or SettingsError if the API key or the User-Agent cannot be sent in a header.
        """
        # A colon is not allowed either, because it ends the user name of Basic authentication.
        if not re.fullmatch(r"[!-9;-~]+", self.api_key):
            raise CredentialsFormatError(
                "The API key is blank or contains characters that no Cliniko key has: store it exactly as Cliniko"
                " shows it"
            )
        if not re.fullmatch(r"[!-~](?:[ -~]*[!-~])?", self.user_agent):
            raise SettingsError(
                "The User-Agent must be plain ASCII on one line: check that CLINIKO_CONTACT_EMAIL is an e-mail address"
            )
        return httpx.Headers(
            {
                "Authorization": f"Basic {b64encode(f'{self.api_key}:'.encode()).decode()}",
                "Accept": "application/json",
                "User-Agent": self.user_agent,
            }
        )


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """The limits of attempts and concurrency, the clocks, and the source of random numbers."""

    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    max_pages_in_flight: int = MAX_PAGES_IN_FLIGHT
    sleep: Callable[[float], object] = time.sleep  # may raise an error to interrupt a wait
    wall_clock: Callable[[], float] = time.time
    rng: random.Random = field(default_factory=random.Random)


class Sender:
    """A thread-safe sender of GET requests. No error or representation contains the key.

    `transport` is shared with other senders, so it stays open. With None, the sender has its own transport.
    """

    def __init__(
        self,
        access: Access,
        budget: RequestBudget,
        transport: httpx.BaseTransport | None,
        options: RequestOptions,
        reporter: Reporter,
    ) -> None:
        self._headers = access.headers()
        self._budget = budget
        self._shared_transport = transport
        self._transport = transport or CurlTransport(Limits())
        self._options = options
        self._reporter = reporter
        self._is_closed = False
        self._was_accepted = False

    def close(self) -> None:
        """Close the connections and abort requests in flight, unless the transport is shared."""
        self._is_closed = True
        if self._transport is not self._shared_transport:
            self._transport.close()

    def get(
        self,
        url: str,
        read: Callable[[bytes, datetime | None], AnswerT],
        what: str,
        max_attempts: int | None = None,
    ) -> AnswerT:
        """Send a GET request; return what `read` makes of the response's body and Date.

        If `read` raises ClinikoUnavailableError, the request is repeated. `what` describes the request in errors.
        """
        limit = min(max_attempts or self._options.max_attempts, self._options.max_attempts)
        causes: Counter[int | TransportFailure] = Counter()
        attempt, waits, announced = 0, 0.0, 0.0
        while True:
            attempt += 1
            outcome = self._attempt(url, read, attempt, announced)
            if not isinstance(outcome, _Failed):
                return outcome
            causes[outcome.result] += 1
            if outcome.refused is not None:
                raise field_refused(f"{what}, {_describe(outcome.result)}", *outcome.refused)
            if isinstance(outcome.decision, Fail):
                raise outcome.decision.error(f"{what}, {_describe(outcome.result)}: {outcome.decision.reason}")
            waits += outcome.decision.seconds
            if attempt >= limit or waits > MAX_WAIT_SECONDS:
                raise _exhausted(outcome.decision.error, what, causes)
            announced = self._wait(outcome.decision, _describe(outcome.result), what, attempt)

    def _attempt(
        self, url: str, read: Callable[[bytes, datetime | None], AnswerT], attempt: int, announced: float
    ) -> "AnswerT | _Failed":
        with self._budget.request() as waited:
            self._report_wait(waited, announced)
            result, headers, body = self._send(url)
            now, rng = self._options.wall_clock(), self._options.rng
            decision = decide(result, headers, attempt=attempt, now=now, rng=rng, was_accepted=self._was_accepted)
            if isinstance(decision, Retry) and decision.everyone:
                # Block the budget before this request is marked as answered, so that no waiting request is sent first.
                self._budget.block(decision.seconds)
        if not isinstance(decision, Succeed):
            is_refusal = isinstance(decision, Fail) and result in _REFUSAL_STATUSES
            return _Failed(result, decision, find_refused_field(url, body) if is_refusal else None)
        self._was_accepted = True
        try:
            return read(body, server_time(headers))
        except ClinikoUnavailableError:
            retry = back_off(headers, attempt=attempt, now=now, rng=rng)
            return _Failed(TransportFailure.UNREADABLE_BODY, retry)

    def _send(self, url: str) -> tuple[int | TransportFailure, Mapping[str, str], bytes]:
        if self._is_closed:
            raise RuntimeError("The client is closed")
        self._reporter.count(requests=1)
        try:
            # Use no httpx.Client, because its work on redirects and cookies takes as long as reading the page.
            response = self._transport.handle_request(httpx.Request("GET", url, headers=self._headers))
            response.read()
        except httpx.RequestError as error:
            # Do not raise httpx's error, because it contains the request with its Authorization header.
            return _failure_of(error), {}, b""
        return response.status_code, response.headers, response.content

    def _report_wait(self, waited: float, announced: float) -> None:
        if waited:
            self._reporter.count(seconds_waited=waited)
        if waited - announced >= MIN_REPORTED_WAIT_SECONDS:
            self._reporter.emit(Waiting(waited - announced, "the request budget was used up"))

    def _wait(self, retry: Retry, cause: str, what: str, attempt: int) -> float:
        """Wait before the next attempt; return the seconds that the budget will wait instead."""
        self._reporter.count(retries=1)
        if retry.everyone:
            self._reporter.count(rate_limited=1)
            self._reporter.emit(Waiting(retry.seconds, "Cliniko asked to wait (429)"))
            return retry.seconds
        self._reporter.emit(Retrying(what, attempt, retry.seconds, cause))
        self._options.sleep(retry.seconds)
        self._reporter.count(seconds_waited=retry.seconds)
        return 0.0


@dataclass(frozen=True, slots=True)
class _Failed:
    result: int | TransportFailure
    decision: Retry | Fail
    refused: tuple[Use, str] | None = None


_FAILURES: tuple[tuple[type[httpx.RequestError], TransportFailure], ...] = (
    # The first match applies, so httpx.RequestError, the base class of the others, comes last.
    (httpx.TimeoutException, TransportFailure.TIME_OUT),
    (httpx.ConnectError, TransportFailure.UNREACHABLE),
    (httpx.ProxyError, TransportFailure.UNREACHABLE),
    (httpx.DecodingError, TransportFailure.UNREADABLE_BODY),
    (httpx.RequestError, TransportFailure.CONNECTION_LOST),
)


def _failure_of(error: httpx.RequestError) -> TransportFailure:
    return next(failure for kind, failure in _FAILURES if isinstance(error, kind))


_NEXT_STEPS: Mapping[type[TransientError], str] = {
    ClinikoUnavailableError: "syncs are retried automatically; if the error persists, check whether Cliniko reports an "
    "outage, and whether this machine can reach the organization's API URL (DNS, firewall, proxy)",
    RateLimitedError: "another program seems to use the API as the same Cliniko user: give the pipeline its own user, "
    "or lower CLINIKO_REQUESTS_PER_MINUTE",
}


def _exhausted(error: type[TransientError], what: str, causes: Counter[int | TransportFailure]) -> TransientError:
    total = causes.total()
    failures = ", ".join(_describe(result, times) for result, times in causes.most_common())
    attempts = f"{total} attempt{'s' if total > 1 else ''}"
    return error(f"{what}: given up after {attempts} ({failures}): {_NEXT_STEPS[error]}")


def _describe(result: int | TransportFailure, times: int | None = None) -> str:
    """Describe a result, such as "answer 502", or results, such as "2 answers 502"."""
    noun, status = (result.value, "") if isinstance(result, TransportFailure) else ("answer", f" {result}")
    return f"{noun}{status}" if times is None else f"{times} {noun}{'s' if times > 1 else ''}{status}"
