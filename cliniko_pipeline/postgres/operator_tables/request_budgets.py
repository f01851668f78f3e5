"""`cliniko.request_budgets`: the request budget of an API key, shared by all processes.

The SQL function `cliniko.take_requests` decides whether a request may be sent. This module takes several requests per
statement, and waits if the budget is used up.
"""

import math
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sqlalchemy.engine import Connection, Row

from cliniko_pipeline.errors import SettingsError
from cliniko_pipeline.postgres.engine import Database, sql, statement

LONGEST_ANSWER_SECONDS = 120.0
"""After this time, a request without a reported response counts as answered."""
LONGEST_BLOCK_SECONDS = 900.0
"""The longest time without requests after a response 429."""
LONGEST_HELD_SECONDS = 1.0
"""Taken requests are given up if they are not sent within this time."""
LONGEST_SLEEP_SECONDS = 2.0
"""The longest sleep before the budget is queried again, because other processes may have reported responses."""
SHARE_PER_STATEMENT = 1 / 400
"""The share of the limit that one statement takes, at least one request. For large limits a statement per request would
cost more than the request. A larger share would waste more requests, because unsent ones also count for a minute."""
CROWDED_SECONDS = 600.0
"""How long after a response 429 each process sends one request at a time. Another program probably uses the key, and
all requests in flight would get the response 429."""
_SHORTEST_SLEEP = 0.001
_NEXT_ANSWER_SECONDS = 0.02
"""How often a process checks whether its previous request has a response."""


@dataclass
class _Ticket:
    """Requests taken by one statement. `unsent` ones are not sent yet, `unanswered` ones are in flight."""

    number: int
    taken_at: float
    unsent: int
    unanswered: int = 0
    answered_at: float = -math.inf

    @property
    def is_over(self) -> bool:
        """Return whether each request of the ticket is answered or was given up."""
        return not self.unsent and not self.unanswered


class SharedRequestBudget:
    """A thread-safe budget of `limit` requests per API key and `window` seconds, over all processes.

    A request is counted until `window` seconds after its response, so it does not matter when Cliniko counts it. After
    a response 429, requests are sent one at a time for a while. `sleep` may raise an error to interrupt a wait. No
    request is counted then. `per_statement` is the number of requests that one statement takes, if the caller knows it.

    Raises SettingsError for a limit or window that allows no request, and DatabaseUnavailableError.
    """

    def __init__(
        self,
        database: Database,
        key_digest: str,
        limit: int,
        *,
        window: float = 60.0,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        per_statement: int | None = None,
    ) -> None:
        if limit < 1 or not window > 0:
            raise SettingsError("A request budget must allow at least one request: set CLINIKO_REQUESTS_PER_MINUTE")
        self._database = database
        self._key_digest = key_digest
        self._limit = limit
        self._window = window
        self._sleep = sleep
        self._clock = clock
        self._batch_size = min(limit, per_statement or max(1, int(limit * SHARE_PER_STATEMENT)))
        self._lock = threading.Lock()
        self._current: _Ticket | None = None
        self._answered: dict[int, float] = {}
        self._left = limit
        self._is_crowded = False
        self._unanswered = 0

    @contextmanager
    def request(self) -> Generator[float]:
        """Wait until a request may be sent in the `with` block; yield the seconds waited."""
        waited = 0.0
        while True:
            with self._lock:
                ticket, wait = self._take()
            if ticket is not None:
                break
            self._sleep(wait)
            waited += wait
        try:
            yield waited
        finally:
            with self._lock:
                self._note_answered(ticket)

    def block(self, seconds: float) -> None:
        """Block requests with the key for these seconds, without shortening an earlier block."""
        if math.isfinite(seconds):
            with self._lock, self._database.operator_statement() as connection:
                connection.execute(
                    statement(sql("request_budgets/block_requests")),
                    {"key_digest": self._key_digest, "seconds": min(max(0.0, seconds), LONGEST_BLOCK_SECONDS)},
                )
                self._give_up_unsent()
                self._is_crowded = True

    def left(self) -> int:
        """Return how many more requests the budget allowed when it was last queried."""
        return self._left

    def close(self) -> None:
        """Report this process's answered requests, so that other processes need not wait for them."""
        with self._lock:
            self._give_up_unsent()
            if self._answered:
                self._ask(wanted=0)

    def _take(self) -> tuple[_Ticket | None, float]:
        """Return a ticket for one request, or the seconds to sleep before another attempt."""
        if self._is_crowded and self._unanswered:
            return None, _NEXT_ANSWER_SECONDS
        ticket = self._current
        if ticket is None or not ticket.unsent or self._clock() - ticket.taken_at > LONGEST_HELD_SECONDS:
            self._give_up_unsent()
            number, wait = self._ask(self._batch_size)
            if number is None:
                return None, min(max(wait, _SHORTEST_SLEEP), LONGEST_SLEEP_SECONDS)
            ticket = self._current = _Ticket(number, self._clock(), unsent=self._batch_size)
            if self._is_crowded and self._unanswered:
                return None, _NEXT_ANSWER_SECONDS
        ticket.unsent -= 1
        ticket.unanswered += 1
        self._unanswered += 1
        return ticket, 0.0

    def _give_up_unsent(self) -> None:
        ticket, self._current = self._current, None
        if ticket is not None and ticket.unsent:
            ticket.unsent = 0
            self._note_if_over(ticket)

    def _note_answered(self, ticket: _Ticket) -> None:
        ticket.unanswered -= 1
        self._unanswered -= 1
        ticket.answered_at = self._clock()
        self._note_if_over(ticket)

    def _note_if_over(self, ticket: _Ticket) -> None:
        if ticket.is_over:
            self._answered[ticket.number] = max(ticket.answered_at, ticket.taken_at)

    def _ask(self, wanted: int) -> tuple[int | None, float]:
        now = self._clock()
        answered = {ticket: now - answered_at for ticket, answered_at in self._answered.items()}
        with self._database.operator_statement() as connection:
            row = take(connection, self._key_digest, wanted, self._limit, self._window, answered)
        self._answered.clear()
        self._left = row.requests_left
        self._is_crowded = row.is_crowded
        return row.ticket, row.wait_seconds


def take(
    connection: Connection,
    key_digest: str,
    wanted: int = 1,
    allowed: int = 1,
    window: float = 60.0,
    answered: Mapping[int, float] = MappingProxyType({}),
) -> Row[Any]:
    """Take requests from the budget. `answered` has the age in seconds of each ticket's answer."""
    return connection.execute(
        statement(sql("request_budgets/call_take_requests")),
        {
            "key_digest": key_digest,
            "wanted": wanted,
            "allowed": allowed,
            "window_seconds": window,
            "longest_answer_seconds": LONGEST_ANSWER_SECONDS,
            "longest_block_seconds": LONGEST_BLOCK_SECONDS,
            "crowded_seconds": CROWDED_SECONDS,
            "answered_tickets": list(answered),
            "answered_seconds_ago": list(answered.values()),
        },
    ).one()
