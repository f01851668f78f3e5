"""A few threads that work, and that nobody waits for when the process ends.

Python's own pool joins its threads at the end of the process: a request under way would hold up an interruption for as
long as Cliniko takes to answer.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

_T = TypeVar("_T")

NOTICED_WITHIN_SECONDS = 0.1
"""An interruption that came to another thread is noticed in the main thread when its wait has ended."""


class DaemonThreads:
    """At most `most` threads, started as work comes."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._started = 0
        self._is_closed = False

    def submit(self, work: Callable[[], _T]) -> "Future[_T]":
        """Has the work done; the result, or what was raised, is the future's. Call it from one thread at a time.

        Raises RuntimeError where the threads are closed: nobody would ever do it.
        """
        if self._is_closed:
            raise RuntimeError("The threads that were to do the work are closed")
        future: Future[_T] = Future()

        def do() -> None:
            if self._is_closed:
                future.cancel()
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 (it is raised where it is waited for)
                future.set_exception(error)

        self._work.put(do)
        if self._started < self._most:
            self._started += 1
            threading.Thread(target=self._run, name=f"{self._name}-{self._started}", daemon=True).start()
        return future

    def close(self) -> None:
        """Lets the threads end when they have done what they do; what none has begun is cancelled."""
        self._is_closed = True
        for _ in range(self._started):
            self._work.put(None)

    def _run(self) -> None:
        while (do := self._work.get()) is not None:
            do()


def result_of(future: "Future[_T]") -> _T:
    """Waits for the future's result, and can be interrupted meanwhile."""
    while not future.done():
        with suppress(TimeoutError):  # the work's own, where it has ended with one, is raised below
            return future.result(NOTICED_WITHIN_SECONDS)
    return future.result()
