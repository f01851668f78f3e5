"""The events and statistics of a client's progress, without patients' data."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class PageRead:
    """The arrival of a page, with the numbers of accepted records and of requests allowed now."""

    resource: str
    number: int
    pages: int
    records: int
    total_entries: int
    budget_left: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """A wait, reported in advance if Cliniko asked for it, and otherwise afterwards."""

    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Retrying:
    """The failure of an attempt at `what`. The next attempt follows in `seconds`."""

    what: str
    attempt: int
    seconds: float
    cause: str


Event = PageRead | Waiting | Retrying


@dataclass(frozen=True, slots=True)
class Statistics:
    """The work of a client so far, with all attempts and all accepted records."""

    requests: int = 0
    retries: int = 0
    rate_limited: int = 0
    seconds_waited: float = 0.0
    pages: int = 0
    records: int = 0


class Reporter:
    """The statistics of a client, and the listener that gets the client's events one at a time."""

    def __init__(self, on_event: Callable[[Event], object] | None) -> None:
        self._on_event = on_event
        self._lock = threading.Lock()
        self.statistics = Statistics()

    @property
    def has_listener(self) -> bool:
        """Whether a listener receives the events."""
        return self._on_event is not None

    def count(self, **more: float) -> None:
        """Add each number to the statistic with the same name."""
        with self._lock:
            before = self.statistics
            self.statistics = replace(before, **{name: getattr(before, name) + number for name, number in more.items()})

    def emit(self, event: Event) -> None:
        """Pass the event to the listener."""
        if self._on_event:
            with self._lock:
                self._on_event(event)
