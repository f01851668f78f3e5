"""How many requests may go out, and when: what the client asks of a budget.

Belongs here: the protocol, and by what an API key is known to its budget. Does not: how a budget is kept (all
processes share one, in the database), and what Cliniko's 429 means (retry.py).
"""

import hashlib
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

_SHARD_SUFFIX = re.compile(r"-[a-zA-Z]{2}[0-9]{1,2}$")


class RequestBudget(Protocol):
    """Permission to send requests with one API key. Safe to use from several threads."""

    def request(self) -> AbstractContextManager[float]:
        """Wait until one request is allowed; it is sent, and its answer read, inside. Gives the seconds waited."""
        ...

    def block(self, seconds: float) -> None:
        """Let nobody through for that many seconds from now; never shortens an earlier block."""
        ...

    def left(self) -> int:
        """Return how many requests could go out at once, without waiting."""
        ...

    def close(self) -> None:
        """Tell whoever shares the budget that what was sent is answered. The budget can be used again."""
        ...


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
