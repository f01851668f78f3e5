"""A request budget of one process, with a clock that tests may move. Real budgets use the database's clock."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MIN_WAIT_SECONDS = 0.001
"""Shortest wait, because a clock of limited resolution may not move during a shorter one."""


class SlidingWindowBudget:
    """A budget of at most `limit` requests in any `window` seconds. `sleep` may raise to interrupt a wait."""

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

    @contextmanager
    def request(self) -> Iterator[float]:
        """Wait until a request is allowed, count it, and yield the seconds waited."""
        waited = 0.0
        # A block that starts during the sleep also applies to this request.
        while (wait := self._try_to_take()) > 0:
            self._sleep(wait)
            waited += wait
        yield waited

    def close(self) -> None:
        """Do nothing, because no other process shares this budget."""

    def block(self, seconds: float) -> None:
        with self._lock:
            self._blocked_until = max(self._blocked_until, self._clock() + seconds)

    def left(self) -> int:
        with self._lock:
            now = self._clock()
            self._forget_before(now - self._window)
            return 0 if now < self._blocked_until else self._limit - len(self._taken)

    def _try_to_take(self) -> float:
        """Count a request and return 0, or return the seconds after which it may be allowed."""
        with self._lock:
            now = self._clock()
            self._forget_before(now - self._window)
            if now < self._blocked_until:
                return max(self._blocked_until - now, MIN_WAIT_SECONDS)
            if len(self._taken) >= self._limit:
                return max(self._taken[0] + self._window - now, MIN_WAIT_SECONDS)
            self._taken.append(now)
            return 0.0

    def _forget_before(self, instant: float) -> None:
        while self._taken and self._taken[0] < instant:
            self._taken.popleft()
