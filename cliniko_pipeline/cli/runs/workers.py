"""Worker processes that run syncs for the command line.

Syncs run in processes, because threads can deadlock while Dagster sets up logging for their runs. Each worker syncs one
organization at a time, so a killed worker ends only that sync.
"""

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from multiprocessing.process import BaseProcess
from queue import Empty, SimpleQueue

from cliniko_pipeline.cli.runs.ended import Ended
from cliniko_pipeline.cli.runs.progress import ProgressDisplay
from cliniko_pipeline.sync_options import SyncOptions

WORKERS = 4
END_SECONDS = 30
INTERRUPTIONS = 4
SECONDS_BETWEEN_INTERRUPTIONS = 2.5


def run_in_workers(organization_ids: Sequence[str], options: SyncOptions, display: ProgressDisplay) -> dict[str, str]:
    """Sync the organizations; return one error line per failed organization.

    The display starts a thread, so it is opened only after the workers are forked. On KeyboardInterrupt, interrupt the
    workers, which then end their runs. Then raise KeyboardInterrupt again.
    """
    pool = _WorkerPool(organization_ids, options, display)
    workers = pool.start(min(WORKERS, len(organization_ids)))
    try:
        with display, ThreadPoolExecutor(len(workers), thread_name_prefix="sync") as executor:
            try:
                for future in [executor.submit(pool.work, worker) for worker in workers]:
                    future.result()
            except BaseException:
                pool.stop()
                raise
    finally:
        if pool.died:
            _end_runs_of(pool.died)
    return pool.errors


class _WorkerPool:
    """The workers and the queue of organizations."""

    def __init__(self, organization_ids: Sequence[str], options: SyncOptions, display: ProgressDisplay) -> None:
        self.errors: dict[str, str] = {}
        self.died: list[str] = []
        self._options = options
        self._display = display
        self._queue: SimpleQueue[str] = SimpleQueue()
        for organization_id in organization_ids:
            self._queue.put(organization_id)
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._is_stopping = False

    def start(self, number: int) -> "list[_Worker | None]":
        """Start the workers. A worker that dies is replaced."""
        # Dagster is imported here, once, so that forked workers need not import it.
        import_module("cliniko_pipeline.cli.runs.worker_process")

        # Otherwise the interpreter, at its end, looks for garbage among all modules for half a second.
        gc.freeze()
        return [self._new_worker() for _ in range(number)]

    def work(self, worker: "_Worker | None") -> None:
        """Sync queued organizations in the worker, or in its replacement, until the queue is empty."""
        try:
            while not self._is_stopping:
                organization_id = self._queue.get_nowait()
                worker = worker if worker is not None and worker.is_usable() else self._new_worker()
                if worker is not None:
                    self._sync(worker, organization_id)
        except Empty:
            pass
        finally:
            if worker is not None:
                worker.end()

    def stop(self) -> None:
        """Interrupt all workers, and kill those that do not end soon."""
        with self._lock:
            self._is_stopping = True
        # Dagster ignores an interruption between two steps, so the workers are interrupted several times.
        for _ in range(INTERRUPTIONS):
            for worker in self._workers:
                worker.interrupt()
            deadline = time.monotonic() + SECONDS_BETWEEN_INTERRUPTIONS
            if all(worker.wait(deadline - time.monotonic()) for worker in self._workers):
                return
        for worker in self._workers:
            worker.kill()

    def _new_worker(self) -> "_Worker | None":
        with self._lock:
            if self._is_stopping:
                return None
            worker = _Worker(self._options)
            self._workers.append(worker)
            return worker

    def _sync(self, worker: "_Worker", organization_id: str) -> None:
        error = worker.sync(organization_id, self._display)
        if not self._is_stopping:
            self._display.ended(organization_id, error)
        if error is not None:
            self.errors[organization_id] = error
        if worker.has_died:
            self.died.append(organization_id)


def _end_runs_of(organization_ids: Sequence[str]) -> None:
    """Mark the runs of dead workers as failed."""
    from cliniko_pipeline.orchestration.instance.home import open_instance  # noqa: PLC0415
    from cliniko_pipeline.orchestration.runs.in_process import end_abandoned_runs  # noqa: PLC0415
    from cliniko_pipeline.runtime import open_runtime  # noqa: PLC0415
    from cliniko_pipeline.settings import load_settings  # noqa: PLC0415

    # Errors are ignored, so that they do not hide the error that ended the workers. The next sync also ends such runs.
    with suppress(Exception), open_runtime(load_settings()) as runtime, open_instance(runtime) as instance:
        # A dead worker's last transaction can add a run during the first pass. The second pass ends that run.
        for organization_id in [*organization_ids, *organization_ids]:
            with suppress(Exception):
                end_abandoned_runs(instance, runtime, organization_id)


class _Worker:
    """A worker process, as the parent sees it."""

    def __init__(self, options: SyncOptions) -> None:
        from cliniko_pipeline.cli.runs.worker_process import serve  # noqa: PLC0415

        # On macOS, forked processes can crash.
        context = (
            multiprocessing.get_context("fork") if sys.platform == "linux" else multiprocessing.get_context("spawn")
        )
        self._connection, theirs = context.Pipe()
        arguments = (theirs, self._connection, options)
        self._process: BaseProcess = context.Process(target=serve, args=arguments, name="sync worker")
        self.has_died = False
        self._has_ended = False
        # The worker inherits the blocked SIGINT and unblocks it when it can handle interruptions.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def is_usable(self) -> bool:
        return not self._has_ended and self._process.is_alive()

    def sync(self, organization_id: str, display: ProgressDisplay) -> str | None:
        try:
            self._connection.send(organization_id)
            while not isinstance(message := self._connection.recv(), Ended):
                display.show(organization_id, message)
        except (EOFError, OSError):
            self.has_died = self._has_ended = True
            self._process.join(END_SECONDS)
            return f"Its worker ended unexpectedly (exit code {self._process.exitcode}); sync it again."
        self._has_ended = message.is_last
        return message.error

    def interrupt(self) -> None:
        process_id = self._process.pid
        if process_id is not None and self._process.is_alive():
            with suppress(ProcessLookupError):  # the process may have ended since the check
                os.kill(process_id, signal.SIGINT)

    def end(self) -> None:
        """Tell the process to exit."""
        with suppress(OSError):  # the process has died
            self._connection.send(None)
        self._connection.close()
        if not self.wait(END_SECONDS):
            self.kill()

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the process; return whether it has ended."""
        self._process.join(max(seconds, 0))
        return not self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
