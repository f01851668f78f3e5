"""The faults of the simulated Cliniko, and the seeded dice that decide when they occur."""

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
    """A fault of a single request. Its rate is the field `<value>_rate` of `Faults`."""

    SERVER_ERROR = "server_error"
    """A 5xx with a JSON body."""
    RESET_BEFORE_BODY = "reset_before_body"
    """The connection is reset (RST) before the status line."""
    RESET_IN_BODY = "reset_in_body"
    """The connection is reset (RST) after half of the body."""
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
    """A page of 100 records for which requests fail, even requests for a part of the page.

    Only the first `times` requests fail, or all requests if `times` is None. With `truncated`, the body of the response
    ends early. Otherwise the response has `status`. `account` is None for all accounts.
    """

    resource: str
    page: int
    status: int = 500
    truncated: bool = False
    account: str | None = None
    times: int | None = None


@dataclass(frozen=True, slots=True)
class BrokenRecord:
    """A record that makes requests fail for pages that contain the record.

    Requests for pages of up to `largest_page` records succeed nevertheless. `account` is None for all accounts.
    """

    resource: str
    record_id: str
    status: int = 504
    largest_page: int = 0
    account: str | None = None


@dataclass(frozen=True, slots=True)
class RefusedField:
    """A field by which lists cannot be filtered or sorted.

    `use` is "filter" or "sort". The response is a 400, unless the field is ignored `silently`. `resource` and `account`
    are None for all resources and accounts.
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
    """The faults in force, by default none. Use `dataclasses.replace` to change some.

    Rates are shares of the requests, each from 0 to 1 and together at most 1. Every response is delayed by `latency_ms`
    and a random part of `jitter_ms`. The first `too_many_requests_first` requests get a 429. Redirects lead to the
    origin `redirect_to`, such as "http://127.0.0.1:4567". If the origin `next_links_to` is set, `links.next` of every
    list leads to it. `date` replaces the time in every Date header, and may be blank. Rates and latency apply to the
    `accounts` with these names, or to all accounts if there are no names. Raise ArgumentError for a value out of range.

    As in PostgreSQL, the order of records with equal sort fields changes with every request, unless `stable_ties` is
    set.
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
        """Return the setting that makes a page of this size with these ids fail, if any."""
        return next(
            (
                broken
                for broken in self.broken_records
                if broken.resource == resource
                and broken.record_id in keys
                and per_page > broken.largest_page
                and broken.account in (None, account)
            ),
            None,
        )

    def refused(self, account: str, resource: str) -> list[RefusedField]:
        """Return the fields that the account's list cannot be filtered or sorted by."""
        return [
            refused
            for refused in self.refused_fields
            if refused.account in (None, account) and refused.resource in (None, resource)
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the settings in the form that `from_json` accepts."""
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
            return cls(**{name: _from_json(name, setting) for name, setting in given.items()})
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"{_REFUSED}a setting has the wrong type.") from error


_LISTED = {"broken_pages": BrokenPage, "broken_records": BrokenRecord, "refused_fields": RefusedField}


def _from_json(name: str, value: Any) -> Any:
    if name in _LISTED:
        return tuple(_LISTED[name](**entry) for entry in value)
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
    """The decision about one request, with the delay of the response, and the fault, if any."""

    delay_seconds: float
    fault: Fault | None
    status: int = 500


class FaultDice:
    """The seeded dice that decide about each request. New faults restart the dice. Thread-safe."""

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
        """Return the setting that makes this request for a page fail, if any; count the request."""
        first, last = (page - 1) * per_page // _BROKEN_AT_ONCE + 1, -(-page * per_page // _BROKEN_AT_ONCE)
        with self._lock:
            for setting in self._faults.broken_pages:
                is_meant = setting.resource == resource and setting.account in (None, account)
                if (
                    is_meant
                    and first <= setting.page <= last
                    and (setting.times is None or self._broken[setting] < setting.times)
                ):
                    self._broken[setting] += 1
                    return setting
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
