"""The request budget of an API key, as the client sees it. All processes share it in the database."""

import hashlib
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

_SHARD_SUFFIX = re.compile(r"-[a-zA-Z]{2}[0-9]{1,2}$")


class RequestBudget(Protocol):
    """Permission to send requests with one API key. Thread-safe."""

    def request(self) -> AbstractContextManager[float]:
        """Wait until a request is allowed, yield the seconds waited. Send and read the answer inside."""
        ...

    def block(self, seconds: float) -> None:
        """Refuse all requests for so many seconds from now; never shorten an earlier block."""
        ...

    def left(self) -> int:
        """Return the number of requests allowed now."""
        ...

    def close(self) -> None:
        """Mark all sent requests as answered for the other processes. The budget can be used again."""
        ...


class BudgetRegistry:
    """One budget per API key, shared by the clients of this process. `create` makes a digest's budget."""

    def __init__(self, create: Callable[[str], RequestBudget]) -> None:
        self._create = create
        self._lock = threading.Lock()
        self._budgets: dict[str, RequestBudget] = {}

    def budget_for(self, api_key: str) -> RequestBudget:
        """Return the budget of an API key, always the same object."""
        digest = digest_of(api_key)
        with self._lock:
            if digest not in self._budgets:
                self._budgets[digest] = self._create(digest)
            return self._budgets[digest]


def digest_of(api_key: str) -> str:
    """Return 64 hexadecimal digits that identify an API key without revealing it.

    Cliniko accepts a key with and without its shard suffix, and counts both as one.
    """
    return hashlib.sha256(_SHARD_SUFFIX.sub("", api_key.strip()).encode()).hexdigest()
