"""How all benchmarks tell where they are, and on which machine they were."""

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version

from rich.console import Console

WIDTH = 140
CONSOLE = Console(width=None if sys.stdout.isatty() else WIDTH)


def say(text: str) -> None:
    """What begins now."""
    CONSOLE.print(f"{datetime.now(UTC):%H:%M:%S} {text} ...", style="dim", highlight=False)


def load() -> str:
    """Of the machine: of the last minute, five and fifteen."""
    return " ".join(f"{each:.1f}" for each in os.getloadavg())


def machine(postgres: str, *packages: str) -> str:
    """The machine and what ran on it: the server's version, and those of the packages."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    programs = "".join(f", {package} {version(package)}" for package in packages)
    return (
        f"{os.cpu_count()} CPUs, {memory:.0f} GB, {platform.system()} {platform.machine()};"
        f" Python {platform.python_version()}, PostgreSQL {postgres}{programs}"
    )
