"""The rate limit of one API key, which applies to any 60 seconds."""

from collections import deque

WINDOW_SECONDS = 60.0


class RateLimit:
    """A sliding window of admitted requests, the strictest form of a limit per minute."""

    def __init__(self, requests_per_minute: int) -> None:
        self._limit = requests_per_minute
        self._admitted: deque[float] = deque()

    def admit(self, now: float) -> float | None:
        """Admit a request and return None, or return the time when a request is next possible."""
        while self._admitted and self._admitted[0] <= now - WINDOW_SECONDS:
            self._admitted.popleft()
        if len(self._admitted) < self._limit:
            self._admitted.append(now)
            return None
        return self._admitted[0] + WINDOW_SECONDS
