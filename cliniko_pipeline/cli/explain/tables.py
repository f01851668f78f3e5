"""Layout of an explanation on a terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cliniko_pipeline.cli.explain.match_texts import match_lines
from cliniko_pipeline.cli.explain.texts import (
    as_of_line,
    counts_line,
    listing,
    person_lines,
    problems,
    standing,
    utc,
    verdict,
)
from cliniko_pipeline.cli.terminal import printable
from cliniko_pipeline.postgres.reads.explanations.attendances import Attendance
from cliniko_pipeline.postgres.reads.explanations.explanation import Explanation

MAX_ATTENDANCES = 20
MAX_NAME_LENGTH = 24
MIN_WIDTH_FOR_NAMES = 120
"""Terminal width, in characters, from which the table shows appointment types and practitioners."""


def show(console: Console, found: Explanation) -> None:
    """Print the verdict, then a section for each part of the explanation."""
    colour = "green" if found.is_active else "yellow"
    console.print(Text(verdict(found), style=f"bold {colour}"))
    _show_lines(console, [listing(found), *problems(found.state)])
    for heading, lines in (
        ("As of", [as_of_line(found)]),
        ("The person", person_lines(found.person)),
        ("The contact", match_lines(found.match, found.person)),
        ("The appointments", [counts_line(found)]),
    ):
        console.print()
        console.print(Text(heading, style="bold"))
        _show_lines(console, lines)
    if found.attendances:
        _show_attendances(console, found.attendances)


def _show_lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(Padding(Text(line), (0, 0, 0, 2), expand=False))


def _show_attendances(console: Console, attendances: Sequence[Attendance]) -> None:
    has_names = console.width >= MIN_WIDTH_FOR_NAMES
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for heading in ("Starts (UTC)", "When", "Kind", "Appointment"):
        table.add_column(heading, no_wrap=True)
    if has_names:
        for heading in ("Type", "Practitioner"):
            table.add_column(heading, no_wrap=True, max_width=MAX_NAME_LENGTH if console.is_terminal else None)
    table.add_column("Counts", overflow="fold")
    for row in _most_relevant(attendances):
        names = (printable(row.appointment_type), printable(row.practitioner)) if has_names else ()
        cells = (utc(row.starts_at), row.window, row.kind, row.id or "unknown", *names, standing(row))
        table.add_row(*(Text(cell) for cell in cells), style=None if row.counts else "dim")
    console.print()
    console.print(table)
    if len(attendances) > MAX_ATTENDANCES:
        console.print(Text(f"{len(attendances) - MAX_ATTENDANCES} more: --json prints all."))


def _most_relevant(attendances: Sequence[Attendance]) -> list[Attendance]:
    """Choose at most MAX_ATTENDANCES, recent ones before upcoming and earlier ones. Keep the given order."""
    recent = [row for row in attendances if row.window == "recent"]
    upcoming = [row for row in attendances if row.window == "upcoming"]
    others = [row for row in attendances if row.window not in {"recent", "upcoming"}]
    # Attendances are sorted with the latest first. Reversed, the soonest upcoming ones are chosen first.
    chosen = {id(row) for row in [*recent, *reversed(upcoming), *others][:MAX_ATTENDANCES]}
    return [row for row in attendances if id(row) in chosen]
