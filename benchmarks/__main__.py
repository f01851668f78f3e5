"""Command line of the benchmarks: `python -m benchmarks [NAME ...]`."""

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any

from benchmarks.fixtures.processes import remove_own_settings
from benchmarks.reporting import BenchmarkError, Report, progress, table

NAMES = ("budgets", "capacity", "memory", "probes", "reads", "runs", "storage", "syncs", "transforms")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """A help formatter that keeps the paragraphs of a docstring and shows the defaults of options."""


def main(arguments: Sequence[str]) -> int:
    """Run the named benchmarks. Return 0 if all targets are met, and 1 if a target is missed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM also ends processes and databases
    names = list(takewhile(NAMES.__contains__, arguments))
    options = arguments[len(names) :]
    if not names or (options and len(names) > 1):
        parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run benchmarks in turn.")
        parser.add_argument("names", metavar="NAME", nargs="*", help=f"{', '.join(NAMES)}; default: all of them")
        parser.add_argument("--list", action="store_true", help="list all benchmarks with durations and targets")
        parser.epilog = "NAME --help shows the options of one benchmark. Options need exactly one name."
        parsed = parser.parse_args(arguments)
        if parsed.list:
            list_benchmarks()
            return 0
        if parsed.names:
            unknown = [name for name in parsed.names if name not in NAMES]
            parser.error(f"unknown benchmark: {unknown[0]}" if unknown else "options need exactly one name")
    remove_own_settings()
    outcomes = {name: run(name, options) for name in names or NAMES}
    if len(outcomes) > 1:
        report = Report()
        report.show(*(f"{name}: {'ok' if is_ok else 'missed'}" for name, is_ok in outcomes.items()))
    return 0 if all(outcomes.values()) else 1


def list_benchmarks() -> None:
    """Print a table of all benchmarks."""
    found = {name: _module(name).BENCHMARK for name in NAMES}
    rows = [
        (name, benchmark.measures, benchmark.duration, "\n".join(benchmark.targets))
        for name, benchmark in found.items()
    ]
    shown = table([(heading, "{}") for heading in ("name", "measures", "duration", "targets")], rows, left=4)
    shown.show_lines = True
    Report().show(shown)


def run(name: str, arguments: Sequence[str]) -> bool:
    """Run one benchmark; return whether it was measured and met all its targets."""
    module = _module(name)
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}", description=module.__doc__, formatter_class=_HelpFormatter
    )
    for option, (default, text) in module.BENCHMARK.options.items():
        kind: Any = default.__class__
        if kind is bool:
            parser.add_argument(option, action="store_true", help=text)
        elif kind is tuple:
            kind = default[0].__class__ if default else str
            parser.add_argument(option, nargs="*", type=kind, default=default, help=text)
        else:
            parser.add_argument(option, type=kind, default=default, help=text)
    options = parser.parse_args(arguments)
    if module.BENCHMARK.needs_linux and not Path("/proc/self/stat").exists():
        progress(f"{name} reads CPU seconds and memory from /proc: run it on Linux")
        return False
    report = Report()
    report.show(f"{name}: {module.BENCHMARK.measures}")
    try:
        module.run(options, report)
    except BenchmarkError as error:
        progress(f"{name} has no result: {error}")
        return False
    return not report.is_missed


def _module(name: str) -> Any:
    return import_module(f"benchmarks.{name}")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
