"""The worker process of `cliniko-pipeline sync`."""

import logging
import os
import signal
from multiprocessing.connection import Connection

from cliniko_pipeline.cli.runs.ended import Ended
from cliniko_pipeline.cliniko.events import Event
from cliniko_pipeline.definitions import build_definitions
from cliniko_pipeline.errors import ClinikoPipelineError
from cliniko_pipeline.orchestration.instance.home import open_instance
from cliniko_pipeline.orchestration.partitions import ensure_partitions
from cliniko_pipeline.orchestration.runs.in_process import run_sync
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline.sync_options import SyncOptions


def serve(connection: Connection, parents_end: Connection, options: SyncOptions) -> None:
    """Sync each organization whose id arrives on the connection. End when None arrives or the parent has died."""
    # The inherited copy of the parent's end would keep the connection open after the parent's death.
    parents_end.close()
    _restore_signals()
    # In its own session, the worker gets no Ctrl-C from the terminal. The command interrupts the worker instead.
    os.setsid()
    # If Ctrl-C breaks off a statement, the pool drops the connection and would log an error.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        organization_id = connection.recv()
        _serve_with_runtime(connection, organization_id, options)
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        return
    except ClinikoPipelineError as error:
        connection.send(Ended(str(error), is_last=True))
    except Exception as error:  # noqa: BLE001 (a defect; its text can hold personal data)
        connection.send(Ended(f"An unexpected {type(error).__name__} outside of the run.", is_last=True))


def _serve_with_runtime(connection: Connection, organization_id: str | None, options: SyncOptions) -> None:
    def on_event(organization_id: str, event: Event) -> None:  # noqa: ARG001 (the parent knows the id)
        connection.send(event)

    with open_runtime(load_settings()) as runtime, open_instance(runtime) as instance:
        definitions = build_definitions(runtime=runtime, listener=on_event)
        while organization_id is not None:
            ensure_partitions(instance, [organization_id])
            connection.send(Ended(run_sync(definitions, instance, runtime, organization_id, options).error))
            organization_id = connection.recv()


def _restore_signals() -> None:
    """Replace the command's signal handlers, which ignore all signals after the first signal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
