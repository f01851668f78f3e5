"""The rate limit of one API key, which applies to any 60 seconds."""

from collections import deque

WINDOW_SECONDS = 60.0


class RateLimit:
    """A sliding window, the strictest meaning of "200 requests per minute". Refused requests are not included."""

    def __init__(self, requests_per_minute: int) -> None:
        self._limit = requests_per_minute
        self._admitted: deque[float] = deque()

    def admit(self, now: float) -> float | None:
        """Admit a request at `now` (in seconds) and return None, or return the time of the next possible request."""
        while self._admitted and self._admitted[0] <= now - WINDOW_SECONDS:
            self._admitted.popleft()
        if len(self._admitted) < self._limit:
            self._admitted.append(now)
            return None
        return self._admitted[0] + WINDOW_SECONDS
