"""Tells a run that was killed from one that goes on: its processes hold a file lock as long as they live."""

import fcntl
import json
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import dagster as dg

from cliniko_pipeline.runtime import Runtime

CODE_SERVER_TAG = ".dagster/grpc_info"
"""Dagster's own: where the code server is that has launched the run. With a socket it is on this machine."""

PATIENCE = timedelta(minutes=2)
"""From a run's launch to its mark, and from the end of what is ours to Dagster's own: each takes a few seconds."""


@contextmanager
def marked_alive(runtime: Runtime, run_id: str) -> Generator[None, None, None]:
    """The run counts as alive until the end of the block, or of the process; several processes may hold its mark."""
    with _locked(runtime, run_id):
        yield
        # Only now: a run that an interruption left half made is found by its mark, and ended.
        _mark(runtime, run_id).unlink(missing_ok=True)


@contextmanager
def marked_within(runtime: Runtime, run_id: str) -> Generator[None, None, None]:
    """The same for a block within the run: after its end Dagster has some time left to note that of the run."""
    with _locked(runtime, run_id) as file:
        try:
            yield
        finally:
            os.utime(file.fileno())


def has_lost_its_process(runtime: Runtime, record: dg.RunRecord, now: datetime | None = None) -> bool:
    """Whether the process of a run that has not ended was killed. False where it may be a run of another machine."""
    now = now or datetime.now(UTC)
    try:
        with _mark(runtime, record.dagster_run.run_id).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ended = datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
    except FileNotFoundError:
        # A worker that dies so early its code server notices, but not where the database is down, too: that ends, for
        # good, what in the code server looks after the workers.
        return _is_launched_here(record.dagster_run) and now - record.update_timestamp > PATIENCE
    except OSError:  # somebody holds the lock
        return False
    return now - ended > PATIENCE


def remove_old_marks(instance: dg.DagsterInstance, runtime: Runtime) -> None:
    """Those of processes that were killed before their run was made, or when it had ended."""
    for mark in _mark(runtime, "").glob("*"):
        with suppress(OSError), mark.open("r+") as file:  # gone meanwhile, or locked by a process that lives
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            run = instance.get_run_by_id(mark.name)
            if run is None or run.is_finished:
                mark.unlink()


def _is_launched_here(run: dg.DagsterRun) -> bool:
    try:
        return "socket" in json.loads(run.tags[CODE_SERVER_TAG])
    except (KeyError, ValueError, TypeError):
        return False


def _locked(runtime: Runtime, run_id: str) -> IO[str]:
    """The mark, locked until it is closed. It has the time at which a block within the run ended, before that none."""
    mark = _mark(runtime, run_id)
    mark.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = mark.open("w")
        fcntl.flock(file, fcntl.LOCK_SH)
        if mark.exists():
            os.utime(file.fileno(), (0, 0))
            return file
        file.close()  # taken for an old one before it was locked


def _mark(runtime: Runtime, run_id: str) -> Path:
    return runtime.settings.dagster_home / "run_marks" / run_id
