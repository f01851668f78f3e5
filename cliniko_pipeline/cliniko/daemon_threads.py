"""A few threads that work, and that nobody waits for when the process ends.

Python's own pool joins its threads at the end of the process: a request under way would hold up an interruption for as
long as Cliniko takes to answer.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_T = TypeVar("_T")


class DaemonThreads:
    """At most `most` threads, started as work comes."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._started = 0

    def submit(self, work: Callable[[], _T]) -> "Future[_T]":
        """Has the work done; the result, or what was raised, is the future's. Call it from one thread at a time."""
        future: Future[_T] = Future()

        def do() -> None:
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
        """Lets the threads end when they have done what they do."""
        for _ in range(self._started):
            self._work.put(None)

    def _run(self) -> None:
        while (do := self._work.get()) is not None:
            do()
