"""The interface of an API key's request budget, which all processes share in the database."""

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
        """Wait until a request is allowed; yield the seconds waited. Use one context per request."""
        ...

    def block(self, seconds: float) -> None:
        """Refuse all requests for this many seconds from now, without shortening an earlier block."""
        ...

    def left(self) -> int:
        """Return the number of requests allowed now."""
        ...

    def close(self) -> None:
        """Report the answered requests to the other processes. The budget can still be used."""
        ...


class BudgetRegistry:
    """The request budgets of this process, made by `create` from the digest of an API key."""

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

    The shard suffix is left out, because Cliniko accepts a key with or without it, and has one limit for both.
    """
    return hashlib.sha256(_SHARD_SUFFIX.sub("", api_key.strip()).encode()).hexdigest()
