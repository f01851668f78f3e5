"""The Celery worker, whose processes execute runs one after the other."""

import gc
import signal
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import dagster as dg
from celery.signals import task_postrun
from dagster_celery.tasks import create_execute_job_task  # pyright: ignore[reportUnknownVariableType] (untyped)

from cliniko_pipeline.errors import SettingsError
from cliniko_pipeline.orchestration.celery.launcher import WorkerRunLauncher


def worker_application(instance: dg.DagsterInstance) -> Any:
    """Return the Celery application of a worker, with the launcher's configuration in the instance's `dagster.yaml`.

    Raise SettingsError if the instance launches its runs without Celery.
    """
    launcher = instance.run_launcher
    if not isinstance(launcher, WorkerRunLauncher):
        raise SettingsError(
            f"The dagster.yaml in DAGSTER_HOME ({instance.root_directory}) sends no runs to workers: copy"
            " deploy/celery/dagster.yaml there."
        )
    create_execute_job_task(launcher.celery)
    return launcher.celery


def run_worker(application: Any, queues: Sequence[str], concurrency: int, name: str) -> None:
    """Execute the runs of these queues in `concurrency` processes, until a signal ends the worker.

    The caller must have closed its database connections, which the forked processes must not share.
    """
    # Everything that a run needs is imported here once, and inherited by the processes.
    import_module("cliniko_pipeline.definitions")
    gc.collect()
    gc.freeze()
    task_postrun.connect(_accept_termination)  # pyright: ignore[reportUnknownMemberType] (untyped)
    options = (f"--queues={','.join(queues)}", f"--concurrency={concurrency}", f"--hostname={name}@%h")
    # Gossip and mingle are for workers that elect leaders and share revoked tasks.
    application.worker_main(["worker", *options, "--loglevel=WARNING", "--without-gossip", "--without-mingle"])


def _accept_termination(**_: object) -> None:
    """Let SIGTERM end the process between runs. After a run, Dagster leaves it ignored, as Celery leaves SIGINT."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
