"""How many requests may go out, and when.

Belongs here: the protocol every budget follows and the exact in-process one. Does not: what Cliniko's 429
means (retry.py), and the budget that several processes share through the database.
"""

import hashlib
import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from cliniko_pipeline.errors import SettingsError

_SHARD_SUFFIX = re.compile(r"-[a-z]{2}[0-9]{1,2}$")
_SHORTEST_WAIT = 0.001
"""Seconds; below it a clock of limited resolution might not move, and waiting would turn into spinning."""


class RequestBudget(Protocol):
    """Permission to send requests with one API key. Safe to use from several threads."""

    def take(self) -> float:
        """Wait until one request is allowed, count it, and return the seconds waited."""
        ...

    def block(self, seconds: float) -> None:
        """Let nobody through for that many seconds from now; never shortens an earlier block."""
        ...

    def left(self) -> int:
        """Return how many requests could go out at once, without waiting."""
        ...


class SlidingWindowBudget:
    """Never more than `limit` requests in any `window` seconds, both ends included; nothing is smoothed out.

    Cliniko allows 200 requests a minute and user. `sleep` may raise to interrupt a wait; nothing is counted
    then. Raises SettingsError for a limit below 1 or a window that is not a positive number of seconds.
    """

    def __init__(
        self,
        limit: int,
        window: float = 60.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if limit < 1:
            raise SettingsError(f"{limit} requests a minute are too few: set CLINIKO_REQUESTS_PER_MINUTE to 1 or more")
        if not (math.isfinite(window) and window > 0):
            raise SettingsError("The window of a request budget must be a positive number of seconds")
        self._limit = limit
        self._window = window
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._taken: deque[float] = deque()
        self._blocked_until = -math.inf

    def take(self) -> float:
        """Wait until one request is allowed, count it, and return the seconds waited."""
        waited = 0.0
        # Everyone sleeps outside the lock and asks again afterwards: a block that came meanwhile holds for all.
        while (wait := self._try_to_take()) > 0:
            self._sleep(wait)
            waited += wait
        return waited

    def block(self, seconds: float) -> None:
        """Let nobody through for that many seconds from now; never shortens an earlier block."""
        if not math.isfinite(seconds):
            return
        with self._lock:
            self._blocked_until = max(self._blocked_until, self._clock() + seconds)

    def left(self) -> int:
        """Return how many requests could go out at once, without waiting."""
        with self._lock:
            now = self._clock()
            self._forget_before(now - self._window)
            return 0 if now < self._blocked_until else self._limit - len(self._taken)

    def _try_to_take(self) -> float:
        """Count a request and return 0, or return the seconds after which asking again may succeed."""
        with self._lock:
            now = self._clock()
            self._forget_before(now - self._window)
            if now < self._blocked_until:
                return max(self._blocked_until - now, _SHORTEST_WAIT)
            if len(self._taken) >= self._limit:
                return max(self._taken[0] + self._window - now, _SHORTEST_WAIT)
            self._taken.append(now)
            return 0.0

    def _forget_before(self, instant: float) -> None:
        while self._taken and self._taken[0] < instant:
            self._taken.popleft()


class BudgetRegistry:
    """One budget for every API key, so that two clients with the same key share what Cliniko allows it.

    `create` makes the budget of a key's digest. Keys themselves are not kept.
    """

    def __init__(self, create: Callable[[str], RequestBudget]) -> None:
        self._create = create
        self._lock = threading.Lock()
        self._budgets: dict[str, RequestBudget] = {}

    def budget_for(self, api_key: str) -> RequestBudget:
        """Return the budget of an API key, the same object every time."""
        digest = digest_of(api_key)
        with self._lock:
            if digest not in self._budgets:
                self._budgets[digest] = self._create(digest)
            return self._budgets[digest]


def digest_of(api_key: str) -> str:
    """Return a name for an API key that does not give it away: 64 hexadecimal digits.

    Cliniko takes a key with and without its shard suffix, and counts both as one.
    """
    return hashlib.sha256(_SHARD_SUFFIX.sub("", api_key.strip()).encode()).hexdigest()
