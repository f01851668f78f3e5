"""Processes that run syncs for the command line: a few at once, each one organization after the other.

Processes, not threads: Dagster sets up logging anew for every run, which two threads of one process cannot do at once
without waiting for each other forever. And a worker that is killed takes one organization with it, no more.
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from queue import Empty, SimpleQueue

from cliniko_pipeline.cli.progress import ProgressDisplay
from cliniko_pipeline.cliniko.events import Event
from cliniko_pipeline.errors import ClinikoPipelineError

WORKERS = 4
END_SECONDS = 30


@dataclass(frozen=True)
class _Ended:
    error: str | None


def run_in_workers(organization_ids: Sequence[str], as_of: datetime | None, display: ProgressDisplay) -> dict[str, str]:
    """Syncs the organizations; returns the errors, a line each, of those that failed.

    Ctrl-C reaches the workers too (they share the terminal's group), so that
    their runs end as interrupted ones.
    """
    waiting: SimpleQueue[str] = SimpleQueue()
    for organization_id in organization_ids:
        waiting.put(organization_id)
    errors: dict[str, str] = {}

    def work() -> None:
        worker: _Worker | None = None
        try:
            while True:
                organization_id = waiting.get_nowait()
                worker = worker if worker is not None and worker.is_alive() else _Worker(as_of)
                error = worker.sync(organization_id, display)
                display.ended(organization_id, error)
                if error is not None:
                    errors[organization_id] = error
        except Empty:
            pass
        finally:
            if worker is not None:
                worker.end()

    workers = min(WORKERS, len(organization_ids))
    with ThreadPoolExecutor(workers, thread_name_prefix="sync") as executor:
        for future in [executor.submit(work) for _ in range(workers)]:
            future.result()
    return errors


class _Worker:
    """The process, seen from here."""

    def __init__(self, as_of: datetime | None) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(target=_serve, args=(theirs, as_of), name="sync worker")
        self._process.start()
        theirs.close()

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def sync(self, organization_id: str, display: ProgressDisplay) -> str | None:
        try:
            self._connection.send(organization_id)
            while not isinstance(message := self._connection.recv(), _Ended):
                display.show(organization_id, message)
        except (EOFError, OSError):
            self._process.join(END_SECONDS)
            return f"Its process ended unexpectedly (exit code {self._process.exitcode}); sync it again."
        return message.error

    def end(self) -> None:
        self._connection.close()
        self._process.join(END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(connection: Connection, as_of: datetime | None) -> None:
    """The worker's own side: syncs whatever it is told to, until nobody is there to tell."""
    try:
        organization_id = connection.recv()
        _serve_with_runtime(connection, organization_id, as_of)
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        return
    except ClinikoPipelineError as error:
        connection.send(_Ended(str(error)))
    except Exception as error:  # noqa: BLE001 (a defect; its text may hold anything)
        connection.send(_Ended(f"An unexpected {type(error).__name__} outside of the run."))


def _serve_with_runtime(connection: Connection, organization_id: str, as_of: datetime | None) -> None:
    # Imported here: the process that only starts workers need not wait for Dagster.
    from cliniko_pipeline.definitions import build_definitions  # noqa: PLC0415
    from cliniko_pipeline.orchestration.instance import open_instance  # noqa: PLC0415
    from cliniko_pipeline.orchestration.partitions import ensure_partitions  # noqa: PLC0415
    from cliniko_pipeline.orchestration.runs import run_sync  # noqa: PLC0415
    from cliniko_pipeline.runtime import open_runtime  # noqa: PLC0415
    from cliniko_pipeline.settings import load_settings  # noqa: PLC0415

    def on_event(organization_id: str, event: Event) -> None:  # noqa: ARG001 (whose it is, the caller knows)
        connection.send(event)

    with open_runtime(load_settings()) as runtime, open_instance(runtime) as instance:
        definitions = build_definitions(runtime=runtime, listener=on_event)
        while True:
            ensure_partitions(instance, [organization_id])
            connection.send(_Ended(run_sync(definitions, instance, organization_id, as_of).error))
            organization_id = connection.recv()
