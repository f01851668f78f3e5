"""`cliniko.request_budgets`: the request budget of an API key, shared by all processes on all machines.

The SQL function `cliniko.take_requests` decides. This module waits, and takes several requests per statement.
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
"""Requests taken by a killed process count as answered after this time."""
LONGEST_BLOCK_SECONDS = 900.0
"""The longest block after a 429."""
LONGEST_HELD_SECONDS = 1.0
"""Requests that were taken and not sent within this time are given up."""
LONGEST_SLEEP_SECONDS = 2.0
"""The longest sleep before the budget is asked again: other processes may have reported answers since."""
SHARE_PER_STATEMENT = 1 / 400
"""The share of the limit that one statement takes, at least one request. For large limits a statement per request would
cost more than the request. Requests taken and not sent are lost for a minute."""
CROWDED_SECONDS = 600.0
"""How long after a 429 each process sends one request at a time. Another program uses the key then, and several
requests in flight would all be answered 429."""
_SHORTEST_SLEEP = 0.001
_NEXT_ANSWER_SECONDS = 0.02
"""The interval of looking for the answer to the previous request."""


@dataclass
class _Ticket:
    """Requests taken by one statement: `unsent` are still to be sent, `unanswered` are in flight."""

    number: int
    taken_at: float
    unsent: int
    unanswered: int = 0
    answered_at: float = -math.inf

    @property
    def is_over(self) -> bool:
        """Whether all its requests are sent or given up, and answered."""
        return not self.unsent and not self.unanswered


class SharedRequestBudget:
    """A budget of `limit` requests with one API key in any `window` seconds, over all processes. Thread-safe.

    A request counts until a window after its answer, so its exact time at the server does not matter. After a 429,
    requests are sent one at a time for a while. `sleep` may raise to interrupt a wait; no request is counted then.

    Raise SettingsError for a limit or window that allows no request, and DatabaseUnavailableError.
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
    ) -> None:
        if limit < 1 or not window > 0:
            raise SettingsError("A request budget must allow at least one request: set CLINIKO_REQUESTS_PER_MINUTE")
        self._database = database
        self._key_digest = key_digest
        self._limit = limit
        self._window = window
        self._sleep = sleep
        self._clock = clock
        self._batch_size = max(1, int(limit * SHARE_PER_STATEMENT))
        self._lock = threading.Lock()
        self._current: _Ticket | None = None
        self._answered: dict[int, float] = {}
        self._left = limit
        self._is_crowded = False
        self._unanswered = 0

    @contextmanager
    def request(self) -> Generator[float]:
        """Wait until a request may be sent in the block; yield the seconds waited."""
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
        """Block the key for these seconds. An earlier block is never shortened."""
        if math.isfinite(seconds):
            with self._lock, self._database.operator_statement() as connection:
                connection.execute(
                    statement(sql("request_budgets/block_requests")),
                    {"key_digest": self._key_digest, "seconds": min(max(0.0, seconds), LONGEST_BLOCK_SECONDS)},
                )
                self._give_up_unsent()
                self._is_crowded = True

    def left(self) -> int:
        """Return how many requests were left when the last one was taken."""
        return self._left

    def close(self) -> None:
        """Report the answered requests of this process, so that other processes do not wait for them."""
        with self._lock:
            self._give_up_unsent()
            if self._answered:
                self._ask(wanted=0)

    def _take(self) -> tuple[_Ticket | None, float]:
        """Return a ticket for one request, or the seconds to sleep before asking again."""
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
    """Take requests from the budget, in an operator's transaction; `answered`: tickets, and how many seconds ago."""
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
