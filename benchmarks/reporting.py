"""Output of benchmarks: the machine, tables and verdicts, and progress on standard error."""

import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 140


class BenchmarkError(Exception):
    """A benchmark has no result. The message says why."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's options, and its description in `--list`.

    Attributes:
        needs_linux: whether the benchmark reads /proc.
        options: default and help text by option. An option whose default is a tuple takes several values. An option
            whose default is `False` takes no value.
    """

    measures: str
    duration: str
    targets: tuple[str, ...]
    needs_linux: bool = True
    options: Mapping[str, tuple[Any, str]] = field(default_factory=dict[str, tuple[Any, str]])


@dataclass(frozen=True)
class Target:
    """An upper limit for a measured figure, or a lower limit if `at_least`."""

    claim: str
    figure: float
    limit: float
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the figure is within the limit."""
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    def __str__(self) -> str:
        bound = "at least" if self.at_least else "at most"
        figures = (f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}" for figure in (self.figure, self.limit))
        return f"{self.claim}: {next(figures)} ({bound} {next(figures)}) {'ok' if self.is_met else 'missed'}"


class Report:
    """The printed result of one benchmark.

    Attributes:
        is_missed: whether any target has been missed.
    """

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else WIDTH
        self._console = Console(width=width, highlight=False, markup=False)
        self._load = _load_averages()
        self.is_missed = False

    def show(self, *parts: Table | str) -> None:
        """Print tables and lines."""
        for part in parts:
            self._console.print(part)

    def show_machine(self, server_version: str, *packages: str) -> None:
        """Print the machine, its load before and after measuring, and the versions of PostgreSQL and the packages."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        versions = "".join(f", {package} {version(package)}" for package in packages)
        self.show(
            f"{os.cpu_count()} CPUs, {memory:.0f} GB, {platform.system()} {platform.machine()};"
            f" Python {platform.python_version()}, PostgreSQL {server_version}{versions}",
            f"Load averages (1, 5, 15 minutes): {self._load} before, {_load_averages()} after",
        )

    def show_verdicts(self, targets: Iterable[Target]) -> None:
        """Print each target with its verdict."""
        for target in targets:
            self.show(str(target))
            self.is_missed |= not target.is_met


Column = tuple[str, str]
"""A heading, and the format pattern of its values. The value None gives an empty cell."""


def table(
    columns: Sequence[Column], rows: Iterable[Sequence[Any]], title: str | None = None, *, left: int = 1
) -> Table:
    """Return a table. The first `left` columns are aligned left, all other columns right."""
    made = Table(title=title, title_justify="left")
    for number, (heading, _) in enumerate(columns):
        made.add_column(heading, justify="left" if number < left else "right", no_wrap=number == 0)
    for row in rows:
        values = zip(columns, row, strict=True)
        made.add_row(*("" if value is None else pattern.format(value) for (_, pattern), value in values))
    return made


def progress(text: str) -> None:
    """Print a line with the time on standard error."""
    sys.stderr.write(f"{datetime.now(UTC):%H:%M:%S} {text}\n")
    sys.stderr.flush()


def _load_averages() -> str:
    return " ".join(f"{average:.1f}" for average in os.getloadavg())
