"""Stopwatches for measured processes and commands, and their measurements."""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median

from benchmarks.fixtures.processes import peak_memory, started
from benchmarks.reporting import BenchmarkError, progress


@dataclass(frozen=True)
class Taken:
    """A measurement: wall and CPU seconds, the process's peak in MB, and CPU seconds of PostgreSQL."""

    seconds: float
    cpu: float
    peak: float = 0.0
    server_cpu: float = 0.0

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s, {self.cpu:.2f} CPU s"


def median_of(taken: Sequence[Taken]) -> Taken:
    """Return the median of each figure of the measurements."""
    return Taken(*(median(figures) for figures in zip(*map(astuple, taken), strict=True)))


def seconds_range(taken: Sequence[Taken]) -> str:
    """Return the fewest and the most seconds, or an empty text for a single measurement."""
    seconds = [measurement.seconds for measurement in taken]
    return f"{min(seconds):.2f} {max(seconds):.2f}" if len(seconds) > 1 else ""


def noted(what: str, taken: Taken) -> Taken:
    """Show a measurement as progress, and return it."""
    progress(f"{what}: {taken}")
    return taken


@dataclass(frozen=True)
class Command:
    """A command that has run. `begin` and `end` are UNIX seconds."""

    begin: float
    end: float
    taken: Taken


def run_command(
    command: Sequence[str | Path],
    environ: Mapping[str, str],
    log: Path,
    server_cpu: Callable[[], float],
    max_seconds: float,
) -> Command:
    """Run a command and measure it with its children. Raise `BenchmarkError` if it fails.

    The peak is the peak of the largest process. The kernel reports at least the memory of this process, so a smaller
    peak is unknown, and 0 is returned for it.
    """
    server_before = server_cpu()
    begin = time.time()
    with started(command, environ, log) as process:
        timer = threading.Timer(max_seconds, process.kill)
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            timer.cancel()
        end = time.time()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise BenchmarkError(f"{' '.join(map(str, command))} ended with exit code {process.returncode}")
    peak = usage.ru_maxrss * 1024 / 1e6
    if peak <= peak_memory(os.getpid()):
        peak = 0.0
    return Command(begin, end, Taken(end - begin, usage.ru_utime + usage.ru_stime, peak, server_cpu() - server_before))


class Stopwatch:
    """Stopwatch of this process, from `start` to the last `stop`. `server_cpu` returns PostgreSQL's CPU seconds."""

    def __init__(self, server_cpu: Callable[[], float] = lambda: 0.0) -> None:
        self._server_cpu = server_cpu
        self._started: tuple[float, ...] = ()
        self._stopped: tuple[float, ...] = ()

    def start(self) -> None:
        """Begin to measure."""
        self._started = self._now()

    def stop(self) -> None:
        """End the measurement now. A later call replaces this end."""
        self._stopped = self._now()

    def taken(self) -> Taken:
        """Return the measurement."""
        seconds, cpu, server_cpu = (end - start for start, end in zip(self._started, self._stopped, strict=True))
        return Taken(seconds, cpu, peak_memory(os.getpid()), server_cpu)

    def _now(self) -> tuple[float, ...]:
        ended = os.times()
        cpu = time.process_time() + ended.children_user + ended.children_system
        return time.perf_counter(), cpu, self._server_cpu()
