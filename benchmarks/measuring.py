"""Stopwatches of measured processes, and what they show."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from statistics import median

from benchmarks.fixtures.processes import peak_memory
from benchmarks.reporting import progress


@dataclass(frozen=True)
class Taken:
    """Wall and CPU seconds between start and stop, the process's peak in MB, and CPU seconds of PostgreSQL."""

    seconds: float
    cpu: float
    peak: float = 0.0
    server_cpu: float = 0.0

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s, {self.cpu:.2f} CPU s"


def median_of(taken: Sequence[Taken]) -> Taken:
    """Return the median of each figure."""
    return Taken(*(median(figures) for figures in zip(*map(astuple, taken), strict=True)))


def seconds_range(taken: Sequence[Taken]) -> str:
    """Return the fewest and the most seconds, or nothing for a single measurement."""
    seconds = [one.seconds for one in taken]
    return f"{min(seconds):.2f} {max(seconds):.2f}" if len(seconds) > 1 else ""


def noted(what: str, taken: Taken) -> Taken:
    """Show a measurement as progress, and return it."""
    progress(f"{what}: {taken}")
    return taken


class Stopwatch:
    """Measures this process from `start` to the last `stop`; `server_cpu` returns the CPU seconds of PostgreSQL."""

    def __init__(self, server_cpu: Callable[[], float] = lambda: 0.0) -> None:
        self._server_cpu = server_cpu
        self._started: tuple[float, ...] = ()
        self._stopped: tuple[float, ...] = ()

    def start(self) -> None:
        """Begin to measure."""
        self._started = self._now()

    def stop(self) -> None:
        """End what is measured here, unless it is stopped again."""
        self._stopped = self._now()

    def taken(self) -> Taken:
        """Return what was measured."""
        seconds, cpu, server_cpu = (end - start for start, end in zip(self._started, self._stopped, strict=True))
        return Taken(seconds, cpu, peak_memory(os.getpid()), server_cpu)

    def _now(self) -> tuple[float, ...]:
        ended = os.times()
        cpu = time.process_time() + ended.children_user + ended.children_system
        return time.perf_counter(), cpu, self._server_cpu()
