"""A client's progress: events and statistics, without patients' data."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class PageRead:
    """A page arrived. `records` excludes rejected ones; `budget_left` is the API key's at this moment."""

    resource: str
    number: int
    pages: int
    records: int
    total_entries: int
    budget_left: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """A wait that Cliniko asked for (reported before it), or one for the request budget (reported after it)."""

    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Retrying:
    """Attempt number `attempt` at `what` failed because of `cause`; the next one follows in `seconds`."""

    what: str
    attempt: int
    seconds: float
    cause: str


Event = PageRead | Waiting | Retrying


@dataclass(frozen=True, slots=True)
class Statistics:
    """The work of a client so far. `requests` counts every attempt, `records` excludes rejected ones."""

    requests: int = 0
    retries: int = 0
    rate_limited: int = 0
    seconds_waited: float = 0.0
    pages: int = 0
    records: int = 0


class Reporter:
    """Keeps a client's statistics and passes its events on, one at a time."""

    def __init__(self, on_event: Callable[[Event], object] | None) -> None:
        self._on_event = on_event
        self._lock = threading.Lock()
        self.statistics = Statistics()

    @property
    def has_listener(self) -> bool:
        """Whether anybody receives the events."""
        return self._on_event is not None

    def count(self, **more: float) -> None:
        """Add to the named statistics."""
        with self._lock:
            before = self.statistics
            self.statistics = replace(before, **{name: getattr(before, name) + number for name, number in more.items()})

    def emit(self, event: Event) -> None:
        """Call `on_event`."""
        if self._on_event:
            with self._lock:
                self._on_event(event)
