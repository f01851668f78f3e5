"""Run liveness: the process of a run says every few seconds, in the database, that it is alive.

So every machine, login and Dagster home can tell a run that goes on from one that was killed.
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
SECONDS_TO_END = 5.0
_START_TIME = 18
"""Which field of /proc/PID/stat it is, counted from the one after the state."""


@contextmanager
def run_alive(runtime: Runtime, run_id: str) -> Generator[None, None, None]:
    """The run counts as alive until the end of the block. One that ends in an exception may not have ended in Dagster:
    it counts as lost.
    """
    try:
        with _beating(runtime, run_id):
            yield
    except BaseException:
        with suppress(ClinikoPipelineError), runtime.database.operator() as connection:
            run_heartbeats.lose(connection, run_id)
        raise
    with suppress(ClinikoPipelineError), runtime.database.operator() as connection:
        run_heartbeats.end(connection, run_id)


@contextmanager
def run_alive_within(runtime: Runtime, run_id: str) -> Generator[None, None, None]:
    """The same for a block within the run: after its end Dagster has some time left to note that of the run."""
    with _beating(runtime, run_id):
        yield


def lost_runs(runtime: Runtime, runs: Sequence[dg.DagsterRun]) -> list[dg.DagsterRun]:
    """Return which of these runs, which have not ended, have lost their process."""
    if not runs:
        return []
    with runtime.database.operator() as connection:
        found = run_heartbeats.heartbeats(connection, [each.run_id for each in runs])
    lost = {each.run_id for each in found if each.is_lost or _is_gone_from_here(each)}
    return [each for each in runs if each.run_id in lost]


def forget_ended_runs(instance: dg.DagsterInstance, runtime: Runtime) -> None:
    """Forget the runs that were not heard of at their end."""
    with runtime.database.operator() as connection:
        for run_id in run_heartbeats.silent_runs(connection):
            run = instance.get_run_by_id(run_id)
            if run is None or run.is_finished:
                run_heartbeats.end(connection, run_id)


@contextmanager
def _beating(runtime: Runtime, run_id: str) -> Generator[None, None, None]:
    has_ended = threading.Event()
    process = this_process()

    def beat() -> None:
        with runtime.database.operator() as connection:
            run_heartbeats.beat(connection, run_id, process)

    def go_on_beating() -> None:
        while not has_ended.wait(SECONDS_BETWEEN_BEATS):
            # While the database is away nobody can judge, either.
            with suppress(ClinikoPipelineError):
                beat()

    with suppress(ClinikoPipelineError):
        beat()
    thread = threading.Thread(target=go_on_beating, name="run heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join(SECONDS_TO_END)


def this_process() -> str:
    """Return the process's name, which no other process on any machine has."""
    number = os.getpid()
    return f"{_machine()} {number} {_started_at(number)}"


def _is_gone_from_here(heartbeat: Heartbeat) -> bool:
    """Whether the process was one of this machine's and has ended: its silence need not be waited for."""
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
    """The machine since its start and, in a container, the container: process numbers mean nothing elsewhere."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return gethostname()


def _started_at(process: int) -> str:
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        state, *fields = stat.rpartition(")")[2].split()
        # One that has ended, and that nobody has asked for its exit code yet.
        return state if state == "Z" else fields[_START_TIME]
    except (OSError, IndexError):
        return ""
