"""The request budget of an API key that all processes share, on whatever machine: `cliniko.request_budgets`.

What is kept and decided stands in `sql/functions/take_requests.sql`; here are the waiting, and what one process takes
at a time. Knows no HTTP: what is a request, and when it was answered, it is told.
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
"""What was taken by a process that was killed counts as answered so much later."""
LONGEST_BLOCK_SECONDS = 900.0
"""Nobody is kept waiting longer, whatever was asked for."""
LONGEST_HELD_SECONDS = 1.0
"""What was taken and not sent by then is given up."""
LONGEST_SLEEP_SECONDS = 2.0
"""What others took may turn out to have been answered long ago: nobody sleeps longer without asking again."""
TAKEN_AT_ONCE = 1 / 400
"""Of the requests of a minute, so many are taken in one statement: one at 200 a minute. With budgets so large that
asking for each would cost more than sending it, those taken and not sent are lost for a minute."""
CROWDED_SECONDS = 600.0
"""So long after a 429 each process sends one request at a time: something else uses the key, and whatever is on its way
when it has used up the rest is answered 429, too."""
_SHORTEST_SLEEP = 0.001
_NEXT_ANSWER_SECONDS = 0.02
"""How often whoever waits for the answer to another request looks for it."""


@dataclass
class _Ticket:
    """Requests that were taken in one statement: `unsent` still to be sent, `unanswered` on their way."""

    number: int
    taken_at: float
    unsent: int
    unanswered: int = 0
    answered_at: float = -math.inf

    @property
    def is_over(self) -> bool:
        """Whether nothing will be sent with it any more, and all is answered."""
        return not self.unsent and not self.unanswered


class SharedRequestBudget:
    """Never more than `limit` requests with one API key in any `window` seconds, over all processes.

    A request counts until a window after its answer has come, so that its exact moment at the server does not matter.
    After a block (a 429 in spite of all this: something else uses the key) requests go one at a time for a while.
    `sleep` may raise to interrupt a wait; nothing is counted then. Safe to use from several threads. Raises
    SettingsError for a limit or a window that allows nothing, and DatabaseUnavailableError where the database cannot be
    asked.
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
        self._at_once = max(1, int(limit * TAKEN_AT_ONCE))
        self._lock = threading.Lock()
        self._current: _Ticket | None = None
        self._answered: dict[int, float] = {}
        self._left = limit
        self._is_crowded = False
        self._unanswered = 0

    @contextmanager
    def request(self) -> Generator[float]:
        """Wait until one request may be sent, and send it inside; yields the seconds waited."""
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
        """Let nobody through for that many seconds from now; never shortens an earlier block."""
        if math.isfinite(seconds):
            with self._lock, self._database.operator_statement() as connection:
                connection.execute(
                    statement(sql("request_budgets/block_requests")),
                    {"key_digest": self._key_digest, "seconds": min(max(0.0, seconds), LONGEST_BLOCK_SECONDS)},
                )
                self._give_up_unsent()
                self._is_crowded = True

    def left(self) -> int:
        """How many requests could go out at once, as far as was known when the last one was taken."""
        return self._left

    def close(self) -> None:
        """Tells the others which requests of this process were answered: they wait no longer than for those."""
        with self._lock:
            self._give_up_unsent()
            if self._answered:
                self._ask(wanted=0)

    def _take(self) -> tuple[_Ticket | None, float]:
        """A ticket that allows one request, or how long to sleep before asking again."""
        if self._is_crowded and self._unanswered:
            return None, _NEXT_ANSWER_SECONDS
        ticket = self._current
        if ticket is None or not ticket.unsent or self._clock() - ticket.taken_at > LONGEST_HELD_SECONDS:
            self._give_up_unsent()
            number, wait = self._ask(self._at_once)
            if number is None:
                return None, min(max(wait, _SHORTEST_SLEEP), LONGEST_SLEEP_SECONDS)
            ticket = self._current = _Ticket(number, self._clock(), unsent=self._at_once)
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
        statement(sql("request_budgets/take_requests")),
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
