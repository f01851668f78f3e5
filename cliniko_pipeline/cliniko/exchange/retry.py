"""Pure decisions after each attempt at a request: succeed, wait and repeat, or fail."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum

from cliniko_pipeline.errors import (
    AuthenticationError,
    ClinikoPipelineError,
    ClinikoUnavailableError,
    ForeignLinkError,
    PermissionDeniedError,
    RateLimitedError,
    RequestRejectedError,
    TransientError,
    UnexpectedResponseError,
)

BACKOFF_BASE_SECONDS = 1.0
BACKOFF_CAP_SECONDS = 30.0
MAX_RETRY_AFTER_SECONDS = 60.0
"""A longer Retry-After is shortened to this, because the sync can run again later."""
DEFAULT_RATE_LIMIT_SECONDS = 60.0
"""The wait after a 429 that gives no plausible time. Cliniko's limit is per minute."""
MAX_RATE_LIMIT_SECONDS = 300.0
"""A rate limit's reset further in the future is ignored, because the limit is per minute."""
RESET_MARGIN_SECONDS = 1.0
"""Added to a wait for the reset, because X-RateLimit-Reset and Date are cut to whole seconds."""
MAX_REFUSED_ATTEMPTS = 4
"""Attempts at a request that gets a 401 or 403 although the API key was accepted before."""
MAX_DATE_DIFFERENCE_SECONDS = 86_400.0
"""A Date header is not used to compute waits if it differs more from this machine's clock."""
MAX_RESET_AGE_SECONDS = 5.0
"""A reset further in the past is ignored, because it does not explain the 429."""


class TransportFailure(Enum):
    """Reasons why an attempt got no usable response. The values appear in messages."""

    TIME_OUT = "time-out"
    UNREACHABLE = "failed connection"
    CONNECTION_LOST = "broken connection"
    UNREADABLE_BODY = "unreadable answer"


@dataclass(frozen=True, slots=True)
class Succeed:
    """The decision to use the response."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The decision to repeat the request after `seconds`."""

    seconds: float
    everyone: bool  # whether to block all requests with the API key
    error: type[TransientError]  # raised after the last attempt


@dataclass(frozen=True, slots=True)
class Fail:
    """The decision to raise `error` at once. `reason` says what to do next."""

    error: type[ClinikoPipelineError]
    reason: str


Decision = Succeed | Retry | Fail


@dataclass(frozen=True, slots=True)
class _BackOff:
    pass


@dataclass(frozen=True, slots=True)
class _WaitForReset:
    pass


_Rule = Succeed | Fail | _BackOff | _WaitForReset

_RULES: Mapping[int, _Rule] = {
    401: Fail(
        AuthenticationError,
        "Cliniko does not know the API key: make a new one in Cliniko under My Info, Manage API keys, "
        "and store it with `cliniko-pipeline organizations add`",
    ),
    403: Fail(
        PermissionDeniedError,
        "the Cliniko user whose API key this is lacks the right to read this: give the user the right, "
        "or store the key of a user who has it",
    ),
    404: Fail(
        RequestRejectedError,
        "Cliniko has nothing at this address: check the organization's API URL and region",
    ),
    408: _BackOff(),
    425: _BackOff(),
    429: _WaitForReset(),
}
_RULES_BY_HUNDREDS: Mapping[int, _Rule] = {
    2: Succeed(),
    3: Fail(
        ForeignLinkError,
        "Cliniko answered with a redirect, which is not followed: check the organization's API URL and region",
    ),
    4: Fail(
        RequestRejectedError,
        "Cliniko refuses the request, but not because of a sort or filter field: report this to Cliniko's support "
        "if the error persists",
    ),
    5: _BackOff(),
}
_BLOCKED = Fail(
    PermissionDeniedError,
    "a server in front of Cliniko blocked the request, probably because of its User-Agent: check that "
    "CLINIKO_CONTACT_EMAIL is a real e-mail address",
)
_REFUSALS = frozenset({401, 403})
_UNKNOWN_STATUS = Fail(
    UnexpectedResponseError, "the answer's status is unknown in HTTP: check which server answers at the API URL"
)


def decide(
    result: int | TransportFailure,
    headers: Mapping[str, str],
    *,
    attempt: int,
    now: float,
    rng: random.Random,
    was_accepted: bool = False,
) -> Decision:
    """Return the decision after an attempt.

    Args:
        result: the response's status, or the failure.
        headers: the response's headers, which are looked up by names in lower case.
        attempt: the number of the attempt, from 1.
        now: this machine's UNIX time, used only if the response has no usable Date, because the clocks may differ.
        rng: the source of the random part of waits (full jitter).
        was_accepted: whether Cliniko accepted the API key before. If so, a 401 or 403 may be transient.
    """
    is_transient = was_accepted and result in _REFUSALS and attempt < MAX_REFUSED_ATTEMPTS
    match _BackOff() if is_transient else _rule_for(result, headers):
        case _BackOff():
            return back_off(headers, attempt=attempt, now=now, rng=rng)
        case _WaitForReset():
            return Retry(_until_reset(headers, now), everyone=True, error=RateLimitedError)
        case decided:
            return decided


def back_off(headers: Mapping[str, str], *, attempt: int, now: float, rng: random.Random) -> Retry:
    """Return the wait after a transient failure. The arguments are those of `decide`."""
    ceiling = min(BACKOFF_CAP_SECONDS, BACKOFF_BASE_SECONDS * 2.0 ** min(attempt - 1, 16))
    asked = _retry_after(headers, _server_now(headers, now)) or 0.0
    seconds = min(asked, MAX_RETRY_AFTER_SECONDS) + rng.uniform(0.0, ceiling)
    return Retry(seconds, everyone=False, error=ClinikoUnavailableError)


def server_time(headers: Mapping[str, str]) -> datetime | None:
    """Return the response's Date in UTC, or None if it is absent or unreadable."""
    return _http_date(headers.get("date", ""))


def documented_rules() -> list[tuple[str, str, str]]:
    """Return status, error and meaning of failing responses. The first match applies."""
    every: dict[str, _Rule] = {"403 with a web page": _BLOCKED}
    every |= {str(status): rule for status, rule in _RULES.items()}
    every |= {f"{hundreds}xx": rule for hundreds, rule in _RULES_BY_HUNDREDS.items()}
    every |= {"any other": _UNKNOWN_STATUS}
    return [(status, *_documented(rule)) for status, rule in every.items() if not isinstance(rule, Succeed)]


def _documented(rule: _Rule) -> tuple[str, str]:
    match rule:
        case Fail(error, reason):
            return error.__name__, reason
        case _WaitForReset():
            return (
                RateLimitedError.__name__,
                "Cliniko's rate limit is reached; the request is sent again after the reset",
            )
        case _:
            return ClinikoUnavailableError.__name__, "the request is sent again after growing waits"


def _rule_for(result: int | TransportFailure, headers: Mapping[str, str]) -> _Rule:
    if isinstance(result, TransportFailure):
        return _BackOff()
    if result == 403 and "html" in headers.get("content-type", "").lower():
        return _BLOCKED
    return _RULES.get(result) or _RULES_BY_HUNDREDS.get(result // 100, _UNKNOWN_STATUS)


def _until_reset(headers: Mapping[str, str], now: float) -> float:
    """Return the wait after a 429, from X-RateLimit-Reset, else Retry-After, else a default."""
    server_now = _server_now(headers, now)
    reset = _number(headers.get("x-ratelimit-reset", ""))
    for seconds in (None if reset is None else reset - server_now, _retry_after(headers, server_now)):
        # Skip implausible values, such as milliseconds, zero, or times by a wrong clock.
        if seconds is not None and -MAX_RESET_AGE_SECONDS <= seconds <= MAX_RATE_LIMIT_SECONDS:
            return max(seconds, 0.0) + RESET_MARGIN_SECONDS
    return DEFAULT_RATE_LIMIT_SECONDS


def _retry_after(headers: Mapping[str, str], server_now: float) -> float | None:
    """Return the seconds given by Retry-After, or None if it is absent or malformed."""
    value = headers.get("retry-after", "")
    seconds = _number(value)
    if seconds is None:
        until = _http_date(value)
        seconds = None if until is None else until.timestamp() - server_now
    return None if seconds is None or seconds < 0 else seconds


def _server_now(headers: Mapping[str, str], now: float) -> float:
    date = server_time(headers)
    if date is None or abs(date.timestamp() - now) > MAX_DATE_DIFFERENCE_SECONDS:
        return now
    return date.timestamp()


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _http_date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
