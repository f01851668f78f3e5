"""Run liveness, judged by heartbeats that each run's process stores in the database.

Any process that uses the database can tell whether a run was killed, even a run of another machine or user.
"""

import os
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from socket import gethostname

import dagster as dg

from cliniko_pipeline.errors import ClinikoPipelineError
from cliniko_pipeline.postgres.operator_tables import run_heartbeats
from cliniko_pipeline.postgres.operator_tables.run_heartbeats import Heartbeat
from cliniko_pipeline.runtime import Runtime

SECONDS_BETWEEN_BEATS = 15.0
JOIN_SECONDS = 5.0
_START_TIME_FIELD = 18
"""The index of the start time (field 22 of /proc/PID/stat) in the fields after the state. Index 0 is field 4."""


@contextmanager
def heartbeats_of_run(runtime: Runtime, run_id: str) -> Generator[None, None, None]:
    """Send heartbeats during the block, which contains the whole run.

    If the block raises, mark the run as lost, because Dagster may not have recorded that the run ended.
    """
    try:
        with _heartbeats(runtime, run_id):
            yield
    except BaseException:
        with suppress(ClinikoPipelineError), runtime.database.operator() as connection:
            run_heartbeats.mark_lost(connection, run_id)
        raise
    with suppress(ClinikoPipelineError), runtime.database.operator() as connection:
        run_heartbeats.delete_heartbeat(connection, run_id)


@contextmanager
def heartbeats_inside_run(runtime: Runtime, run_id: str) -> Generator[None, None, None]:
    """Send heartbeats during a block inside the run.

    The last heartbeat is kept, because Dagster has not ended the run yet. `delete_ended_heartbeats` deletes it later.
    """
    with _heartbeats(runtime, run_id):
        yield


def find_lost_runs(runtime: Runtime, runs: Sequence[dg.DagsterRun]) -> list[dg.DagsterRun]:
    """Return the lost runs among these unfinished `runs`. The process of a lost run was killed."""
    if not runs:
        return []
    with runtime.database.operator() as connection:
        found = run_heartbeats.heartbeats(connection, [run.run_id for run in runs])
    lost = {heartbeat.run_id for heartbeat in found if heartbeat.is_lost or _has_local_process_ended(heartbeat)}
    return [run for run in runs if run.run_id in lost]


def delete_ended_heartbeats(instance: dg.DagsterInstance, runtime: Runtime) -> None:
    """Delete the old heartbeats of runs that have ended in Dagster."""
    with runtime.database.operator() as connection:
        for run_id in run_heartbeats.silent_runs(connection):
            run = instance.get_run_by_id(run_id)
            if run is None or run.is_finished:
                run_heartbeats.delete_heartbeat(connection, run_id)


@contextmanager
def _heartbeats(runtime: Runtime, run_id: str) -> Generator[None, None, None]:
    has_ended = threading.Event()
    process = this_process()

    def beat() -> None:
        with runtime.database.operator() as connection:
            run_heartbeats.note_heartbeat(connection, run_id, process)

    def beat_until_end() -> None:
        while not has_ended.wait(SECONDS_BETWEEN_BEATS):
            # A missed heartbeat does no harm. While the database is down, no process can judge the run, and after an
            # outage `DOUBT` (see run_heartbeats.py) leaves time for the next heartbeat.
            with suppress(ClinikoPipelineError):
                beat()

    with suppress(ClinikoPipelineError):
        beat()
    thread = threading.Thread(target=beat_until_end, name="run heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join(JOIN_SECONDS)


def this_process() -> str:
    """Return an identifier of this process that is unique across all machines."""
    pid = os.getpid()
    return f"{_machine()} {pid} {_started_at(pid)}"


def _has_local_process_ended(heartbeat: Heartbeat) -> bool:
    """Return whether the run's process ran on this machine and has ended."""
    machine, pid, started_at = (heartbeat.process or "  ").rsplit(" ", 2)
    if machine != _machine():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    now = _started_at(int(pid))
    return started_at != now and "" not in {started_at, now}


@cache
def _machine() -> str:
    """Return an identifier of this boot and container. Each has process ids of its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return gethostname()


def _started_at(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *fields = stat.rpartition(")")[2].split()
        # A zombie has ended, although its pid still exists. So return its state "Z", which equals no start time.
        return state if state == "Z" else fields[_START_TIME_FIELD]
    except (OSError, IndexError):
        return ""
