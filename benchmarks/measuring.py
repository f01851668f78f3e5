"""Stopwatches for measured processes, and their measurements."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from statistics import median

from benchmarks.fixtures.processes import peak_memory
from benchmarks.reporting import progress


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
