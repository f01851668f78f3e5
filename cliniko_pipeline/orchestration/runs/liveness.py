"""Run liveness: the process of a run stores a heartbeat every few seconds.

So every machine, login and Dagster home can tell a running run from a killed one.
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
_START_TIME = 18
"""The index of the start time in /proc/PID/stat, counted from the field after the state."""


@contextmanager
def run_alive(runtime: Runtime, run_id: str) -> Generator[None, None, None]:
    """Keep the run alive during the block. After an exception it counts as lost until it has ended."""
    try:
        with _beating(runtime, run_id):
            yield
    except BaseException:
        with suppress(ClinikoPipelineError), runtime.database.operator() as connection:
            run_heartbeats.mark_lost(connection, run_id)
        raise
    with suppress(ClinikoPipelineError), runtime.database.operator() as connection:
        run_heartbeats.delete_heartbeat(connection, run_id)


@contextmanager
def run_alive_within(runtime: Runtime, run_id: str) -> Generator[None, None, None]:
    """Keep the run alive during a block within it. The last heartbeat leaves Dagster the time to end the run."""
    with _beating(runtime, run_id):
        yield


def find_lost_runs(runtime: Runtime, runs: Sequence[dg.DagsterRun]) -> list[dg.DagsterRun]:
    """Return those of the unfinished runs whose process was killed."""
    if not runs:
        return []
    with runtime.database.operator() as connection:
        found = run_heartbeats.heartbeats(connection, [run.run_id for run in runs])
    lost = {heartbeat.run_id for heartbeat in found if heartbeat.is_lost or _has_local_process_ended(heartbeat)}
    return [run for run in runs if run.run_id in lost]


def delete_ended_heartbeats(instance: dg.DagsterInstance, runtime: Runtime) -> None:
    """Delete the heartbeats of runs that ended without deleting them."""
    with runtime.database.operator() as connection:
        for run_id in run_heartbeats.silent_runs(connection):
            run = instance.get_run_by_id(run_id)
            if run is None or run.is_finished:
                run_heartbeats.delete_heartbeat(connection, run_id)


@contextmanager
def _beating(runtime: Runtime, run_id: str) -> Generator[None, None, None]:
    has_ended = threading.Event()
    process = this_process()

    def beat() -> None:
        with runtime.database.operator() as connection:
            run_heartbeats.note_heartbeat(connection, run_id, process)

    def beat_until_end() -> None:
        while not has_ended.wait(SECONDS_BETWEEN_BEATS):
            # Without the database no other process can judge the run, either.
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
    """Return a name of this process that is unique over all machines."""
    number = os.getpid()
    return f"{_machine()} {number} {_started_at(number)}"


def _has_local_process_ended(heartbeat: Heartbeat) -> bool:
    """Return whether the process ran on this machine and has ended. Then no time-out is needed."""
    machine, number, started_at = (heartbeat.process or "  ").rsplit(" ", 2)
    if machine != _machine():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    now = _started_at(int(number))
    return started_at != now and "" not in {started_at, now}


@cache
def _machine() -> str:
    """Return the machine's boot and the container: process ids mean nothing elsewhere."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return gethostname()


def _started_at(process: int) -> str:
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        state, *fields = stat.rpartition(")")[2].split()
        # A zombie has ended, but its parent has not read its exit code.
        return state if state == "Z" else fields[_START_TIME]
    except (OSError, IndexError):
        return ""
