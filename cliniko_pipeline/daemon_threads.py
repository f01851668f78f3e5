"""A pool of daemon threads, which do not delay the end of the process.

`concurrent.futures` waits for its threads when the process ends, so a request could delay Ctrl-C by a minute.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

_T = TypeVar("_T")

POLL_SECONDS = 0.1
"""The length of one wait. A signal that another thread received is handled between waits."""


class DaemonThreads:
    """A pool of at most `max_workers` daemon threads, started on demand."""

    def __init__(self, max_workers: int, name: str) -> None:
        self._max_workers = max_workers
        self._name = name
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._started = 0
        self._is_closed = False

    def submit(self, work: Callable[[], _T]) -> "Future[_T]":
        """Run `work` in a thread; return the future of its result. Call from one thread at a time.

        Raises RuntimeError after `close`.
        """
        if self._is_closed:
            raise RuntimeError("The threads are closed")
        future: Future[_T] = Future()

        def run() -> None:
            if self._is_closed:
                future.cancel()
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 -- the future raises it again
                future.set_exception(error)

        self._queue.put(run)
        if self._started < self._max_workers:
            self._started += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()
        return future

    def close(self) -> None:
        """End each thread after its current work; cancel the queued work."""
        self._is_closed = True
        for _ in range(self._started):
            self._queue.put(None)

    def _work(self) -> None:
        while (run := self._queue.get()) is not None:
            run()


def wait_for(future: "Future[_T]") -> _T:
    """Return the future's result, or raise its error. A signal interrupts the wait."""
    while not future.done():
        with suppress(TimeoutError):  # raised below if the work raised it
            return future.result(POLL_SECONDS)
    return future.result()
