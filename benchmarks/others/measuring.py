"""What a process that is measured is told, and what it tells.

Wall and CPU seconds are those between `start` and `stop`: importing, connecting to the database and whatever else only
begins a process is not in them. The peak is that of the whole process, as the kernel keeps it (VmHWM).
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

PAGE_SIZE = 100


@dataclass(frozen=True)
class Task:
    """An account to be read into a database that is as `cliniko-pipeline migrate` leaves it.

    `folder` is empty, and the process's own.
    """

    api_url: str
    api_key: str
    host: str
    database_url: str
    folder: str
    patients: int
    appointments: int

    def pages(self) -> list[tuple[str, str]]:
        """The paths of all pages, each with its resource."""
        return [
            (resource, f"{resource}?{query_string(resource)}&page={number}")
            for resource, records in (("patients", self.patients), ("individual_appointments", self.appointments))
            for number in range(1, -(-records // PAGE_SIZE) + 1)
        ]


@dataclass(frozen=True)
class Taken:
    """What it took. `peak` in MB of 10^6 bytes."""

    seconds: float
    cpu: float
    peak: float


HEADERS = {"Accept": "application/json", "User-Agent": "benchmark (benchmark@example.com)"}

EVERYTHING = {
    "patients": ("archived_at:*",),
    "individual_appointments": ("archived_at:*", "cancelled_at:*", "deleted_at:*"),
}
"""The filters without which Cliniko leaves records out."""


def query_string(resource: str) -> str:
    """All of a page's query but its number."""
    filters = "".join(f"&q%5B%5D={each.replace(':', '%3A')}" for each in EVERYTHING[resource])
    return f"per_page={PAGE_SIZE}&sort=created_at&order=asc{filters}"


class Stopwatch:
    """Of several stops the last counts."""

    def __init__(self) -> None:
        self._started: tuple[float, float] | None = None
        self._taken: tuple[float, float] | None = None

    def start(self) -> None:
        """From here on it counts."""
        self._started = (time.perf_counter(), _cpu())

    def stop(self) -> None:
        """Up to here it counted."""
        seconds, cpu = time.perf_counter(), _cpu()
        if self._started is None:
            raise RuntimeError("It was never started")
        self._taken = (seconds - self._started[0], cpu - self._started[1])

    def taken(self) -> Taken:
        """What it took, and the process's peak so far."""
        if self._taken is None:
            raise RuntimeError("It was never stopped")
        return Taken(*self._taken, peak=_peak())


def _cpu() -> float:
    """CPU seconds of the process and of all its threads, and of children that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _peak() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:"))
