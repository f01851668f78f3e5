"""The faults of the simulated Cliniko, as settings, and the seeded dice that decide when they occur.

The server carries them out.
"""

import math
import random
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from enum import Enum
from threading import Lock
from typing import Any, cast

from cliniko_pipeline.errors import ArgumentError

_BROKEN_AT_ONCE = 100
_REFUSED = "Faults cannot be used: "


class Fault(Enum):
    """A fault of one request. Its rate in `Faults` is `<value>_rate`."""

    SERVER_ERROR = "server_error"
    """A 5xx with a JSON body."""
    RESET_BEFORE_BODY = "reset_before_body"
    """The connection is reset (RST) before the status line."""
    RESET_IN_BODY = "reset_in_body"
    """The connection is reset (RST) when half the body is sent."""
    TRUNCATED_BODY = "truncated_body"
    """The connection is closed (FIN) before Content-Length is reached."""
    HTML_OK = "html_ok"
    """An HTML page with status 200."""
    HTML_BAD_GATEWAY = "html_bad_gateway"
    """An HTML page with status 502."""
    TOO_MANY_REQUESTS = "too_many_requests"
    """A 429 although the limit is not reached."""
    HANG = "hang"
    """No answer for `hang_seconds`, then the connection closes."""
    REDIRECT = "redirect"
    """A 302 to `redirect_to`."""
    NOT_AN_OBJECT = "not_an_object"
    """Status 200 with valid JSON that is a list."""


@dataclass(frozen=True, slots=True)
class BrokenPage:
    """A page of a list, 100 records long, that fails, whole or in smaller ones, always or only the first `times`.

    With `truncated` its body ends early, otherwise it is answered with `status`. `account` None: of all.
    """

    resource: str
    page: int
    status: int = 500
    truncated: bool = False
    account: str | None = None
    times: int | None = None


@dataclass(frozen=True, slots=True)
class BrokenRecord:
    """A record that breaks every page of a list with it.

    Pages of up to `largest_page` records are answered all the same; 0: none is. `account` None: of all.
    """

    resource: str
    record_id: str
    status: int = 504
    largest_page: int = 0
    account: str | None = None


@dataclass(frozen=True, slots=True)
class RefusedField:
    """A field that lists cannot be filtered or sorted by: 400, or without any effect where that happens `silently`.

    `use` is "filter" or "sort". `resource` and `account` None: of all.
    """

    field: str
    use: str
    resource: str | None = None
    account: str | None = None
    silently: bool = False

    def __post_init__(self) -> None:
        if self.use not in {"filter", "sort"}:
            raise ArgumentError(f"{_REFUSED}a refused field's use is filter or sort.")


@dataclass(frozen=True, slots=True)
class Faults:
    """The faults in force; by default none. Use `dataclasses.replace` to change some.

    Rates are shares of the requests, each 0 to 1 and together at most 1. Latency and jitter are milliseconds;
    the jitter, 0 to its value, is added. `too_many_requests_first`: so many requests are answered 429 before
    any other fault is considered. `redirect_to` and `next_links_to` are origins ("http://127.0.0.1:4567"):
    where redirects lead, and where `links.next` of every list leads instead of here. `date` is the text of every Date
    header instead of the time, blank for none that can be read. `accounts` limits
    rates and latency to these accounts (by name); empty: all. Raise ArgumentError for a value out of range.

    As in PostgreSQL, records with equal sort fields come in another order with each request; `stable_ties` gives
    them one order.
    """

    seed: int = 0
    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    server_error_rate: float = 0.0
    server_error_statuses: tuple[int, ...] = (500, 502, 503)
    reset_before_body_rate: float = 0.0
    reset_in_body_rate: float = 0.0
    truncated_body_rate: float = 0.0
    html_ok_rate: float = 0.0
    html_bad_gateway_rate: float = 0.0
    too_many_requests_rate: float = 0.0
    too_many_requests_first: int = 0
    too_many_requests_wait_seconds: float = 1.0
    hang_rate: float = 0.0
    hang_seconds: float = 60.0
    redirect_rate: float = 0.0
    redirect_to: str = "http://127.0.0.1:9"
    next_links_to: str | None = None
    not_an_object_rate: float = 0.0
    broken_pages: tuple[BrokenPage, ...] = ()
    broken_records: tuple[BrokenRecord, ...] = ()
    refused_fields: tuple[RefusedField, ...] = ()
    stable_ties: bool = False
    date: str | None = None
    accounts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not (math.isfinite(value) and value >= 0):
                raise ArgumentError(f"{_REFUSED}{field.name} must be zero or more.")
        if sum(self.rates.values()) > 1.0 + 1e-9:
            raise ArgumentError(f"{_REFUSED}the rates add up to more than 1; lower some.")

    @property
    def rates(self) -> dict[Fault, float]:
        """The share of the requests with each fault."""
        return {fault: cast("float", getattr(self, f"{fault.value}_rate")) for fault in Fault}

    def broken_record(self, account: str, resource: str, keys: Collection[str], per_page: int) -> BrokenRecord | None:
        """Return the setting that breaks a page of this size with these ids, if any."""
        return next(
            (
                one
                for one in self.broken_records
                if one.resource == resource
                and one.record_id in keys
                and per_page > one.largest_page
                and one.account in (None, account)
            ),
            None,
        )

    def refused(self, account: str, resource: str) -> list[RefusedField]:
        """Return the fields that the account's list cannot be filtered or sorted by."""
        return [
            one for one in self.refused_fields if one.account in (None, account) and one.resource in (None, resource)
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the settings for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> "Faults":
        """Return the faults of a JSON object with any of the settings. Raise ArgumentError."""
        if not isinstance(value, dict):
            raise ArgumentError(f"{_REFUSED}give a JSON object.")
        known = {field.name: field for field in fields(cls)}
        given = cast("dict[str, Any]", value)
        for name in given:
            if name not in known:
                raise ArgumentError(f"{_REFUSED}there is no such setting; known are {', '.join(known)}.")
        try:
            return cls(**{name: _from_json(name, one) for name, one in given.items()})
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"{_REFUSED}a setting has the wrong type.") from error


_LISTED = {"broken_pages": BrokenPage, "broken_records": BrokenRecord, "refused_fields": RefusedField}


def _from_json(name: str, value: Any) -> Any:
    if name in _LISTED:
        return tuple(_LISTED[name](**one) for one in value)
    if name == "stable_ties":
        return bool(value)
    if name in {"server_error_statuses", "accounts"}:
        return tuple(value)
    if name in {"redirect_to", "next_links_to", "date"}:
        return value if value is None else str(value)
    if name in {"seed", "too_many_requests_first"}:
        return int(value)
    return float(value)


@dataclass(frozen=True, slots=True)
class Misfortune:
    """The decision for one request: the delay before the answer, and the fault, if any."""

    delay_seconds: float
    fault: Fault | None
    status: int = 500


class FaultDice:
    """Seeded dice that decide for each request; new faults restart them. Thread-safe."""

    def __init__(self, faults: Faults) -> None:
        self._lock = Lock()
        self.faults = faults

    @property
    def faults(self) -> Faults:
        """The settings in force."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        with self._lock:
            self._faults = faults
            self._random = random.Random(faults.seed)  # noqa: S311 - dice, not a secret
            self._storm_left = faults.too_many_requests_first
            self._broken: Counter[BrokenPage] = Counter()

    def roll(self, account: str) -> Misfortune:
        """Decide about the account's next request."""
        with self._lock:
            faults = self._faults
            if faults.accounts and account not in faults.accounts:
                return Misfortune(0.0, None)
            delay = (faults.latency_ms + faults.jitter_ms * self._random.random()) / 1000
            fault = self._pick(faults)
            status = self._random.choice(faults.server_error_statuses or (500,))
            return Misfortune(delay, fault, status)

    def broken_page(self, account: str, resource: str, page: int, per_page: int) -> BrokenPage | None:
        """Return the setting that breaks this request of a page, if any, and count the request."""
        first, last = (page - 1) * per_page // _BROKEN_AT_ONCE + 1, -(-page * per_page // _BROKEN_AT_ONCE)
        with self._lock:
            for one in self._faults.broken_pages:
                is_meant = one.resource == resource and one.account in (None, account)
                if is_meant and first <= one.page <= last and (one.times is None or self._broken[one] < one.times):
                    self._broken[one] += 1
                    return one
        return None

    def _pick(self, faults: Faults) -> Fault | None:
        if self._storm_left > 0:
            self._storm_left -= 1
            return Fault.TOO_MANY_REQUESTS
        drawn = self._random.random()
        for fault, rate in faults.rates.items():
            drawn -= rate
            if drawn < 0:
                return fault
        return None
