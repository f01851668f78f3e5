"""The requests that the sandbox answered, kept for assertions. They contain no API keys."""

from collections import Counter, deque
from dataclasses import dataclass
from threading import Lock

_KEPT_REQUESTS = 200_000


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One answered request.

    `at` is the time of arrival in UNIX seconds by the server's clock. `account` is None if no account was identified.
    `status` is the status that was sent, or 0 if the connection broke before a status line. `authorized` is true if the
    request had an Authorization header.
    """

    at: float
    method: str
    account: str | None
    resource: str
    record_id: str | None
    parameters: tuple[tuple[str, str], ...]
    status: int
    authorized: bool


class Counters:
    """The latest 200,000 requests, and the sums of all requests. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._recorded: deque[RecordedRequest] = deque(maxlen=_KEPT_REQUESTS)
        self._sums: Counter[tuple[str | None, str, int]] = Counter()

    def record(self, request: RecordedRequest) -> None:
        """Count one answered request."""
        with self._lock:
            self._recorded.append(request)
            self._sums[request.account, request.resource, request.status] += 1

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._recorded.clear()
            self._sums.clear()

    @property
    def recorded(self) -> list[RecordedRequest]:
        """The kept requests, in the order in which they were answered."""
        with self._lock:
            return list(self._recorded)

    def requests(self, *, account: str | None = None, resource: str | None = None, status: int | None = None) -> int:
        """Return the number of requests with this account, resource and status (None fits any)."""
        with self._lock:
            return sum(
                number
                for (one_account, one_resource, one_status), number in self._sums.items()
                if account in (None, one_account) and resource in (None, one_resource) and status in (None, one_status)
            )

    @property
    def rate_limited(self) -> int:
        """The number of requests that got a 429."""
        return self.requests(status=429)

    def request_times(self, account: str) -> list[float]:
        """Return the arrivals of the account's kept requests in UNIX seconds, ascending."""
        return sorted(request.at for request in self.recorded if request.account == account)

    def busiest_window(self, account: str, seconds: float = 60.0) -> int:
        """Return the largest number of the account's kept requests in a window of this length."""
        window: deque[float] = deque()
        busiest = 0
        for at in self.request_times(account):
            window.append(at)
            while window[0] <= at - seconds:
                window.popleft()
            busiest = max(busiest, len(window))
        return busiest

    def as_json(self) -> dict[str, object]:
        """Return the sums, for `GET /sandbox/counters`."""
        with self._lock:
            sums = sorted(self._sums.items(), key=str)
        return {
            "requests": sum(number for _, number in sums),
            "rate_limited": sum(number for (_, _, status), number in sums if status == 429),
            "by_account_resource_status": [
                {"account": account, "resource": resource, "status": status, "requests": number}
                for (account, resource, status), number in sums
            ],
        }
