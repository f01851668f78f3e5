"""A request budget of one process, on a clock that tests may move: the real one keeps to the database's."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHORTEST_WAIT = 0.001
"""Seconds; below it a clock of limited resolution might not move, and waiting would turn into spinning."""


class SlidingWindowBudget:
    """Never more than `limit` requests in any `window` seconds, both ends included; nothing is smoothed out.

    `sleep` may raise to interrupt a wait; nothing is counted then.
    """

    def __init__(
        self,
        limit: int,
        window: float = 60.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
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

    @contextmanager
    def request(self) -> Iterator[float]:
        yield self.take()

    def close(self) -> None:
        """There is nobody to tell."""

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
                return max(self._blocked_until - now, SHORTEST_WAIT)
            if len(self._taken) >= self._limit:
                return max(self._taken[0] + self._window - now, SHORTEST_WAIT)
            self._taken.append(now)
            return 0.0

    def _forget_before(self, instant: float) -> None:
        while self._taken and self._taken[0] < instant:
            self._taken.popleft()
