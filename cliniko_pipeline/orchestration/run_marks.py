"""Tells a run that was killed from one that goes on: its processes hold a file lock as long as they live."""

import fcntl
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg

from cliniko_pipeline.runtime import Runtime


@contextmanager
def marked_alive(runtime: Runtime, run_id: str) -> Generator[None, None, None]:
    """The run counts as alive until the end of the block, or of the process; several processes may hold its mark."""
    mark = _mark(runtime, run_id)
    mark.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with mark.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            if not mark.exists():  # taken for an old one before it was locked
                continue
            yield
            # Only now: a run that an interruption left half made is found by its mark, and ended.
            mark.unlink(missing_ok=True)
            return


def is_abandoned(runtime: Runtime, run_id: str) -> bool:
    """Whether the run's process was killed. False too where there is no mark: it may be a run of another machine."""
    mark = _mark(runtime, run_id)
    try:
        with mark.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # no such file, or somebody holds the lock
        return False
    return True


def remove_old_marks(instance: dg.DagsterInstance, runtime: Runtime) -> None:
    """Those of processes that were killed before their run was made, or when it had ended."""
    for mark in _mark(runtime, "").glob("*"):
        with suppress(OSError), mark.open("r+") as file:  # gone meanwhile, or locked by a process that lives
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            run = instance.get_run_by_id(mark.name)
            if run is None or run.is_finished:
                mark.unlink()


def _mark(runtime: Runtime, run_id: str) -> Path:
    return runtime.settings.dagster_home / "run_marks" / run_id
