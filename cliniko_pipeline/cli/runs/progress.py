"""Progress of syncs: a live display in a terminal, plain lines elsewhere."""

import threading
import time
from abc import ABC, abstractmethod
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cliniko_pipeline.cli.terminal import printable, shown
from cliniko_pipeline.cliniko.events import Event, PageRead, Retrying, Waiting

SECONDS_BETWEEN_LINES = 5.0


class ProgressDisplay(ABC):
    """A display of client events and of ended syncs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027 (nothing to end by default)
        """End the display."""

    @abstractmethod
    def show(self, organization_id: str, event: Event) -> None:
        """Show the event. Several threads may call this method at once."""

    @abstractmethod
    def ended(self, organization_id: str, error: str | None) -> None:
        """Show the end of the organization's sync; `error` is None after a success."""


def progress_display(organization_ids: list[str]) -> ProgressDisplay:
    """Return the display that fits standard error."""
    console = Console(stderr=True)
    return _LiveDisplay(console, organization_ids) if console.is_terminal else _LineDisplay()


class _LiveDisplay(ProgressDisplay):
    def __init__(self, console: Console, organization_ids: list[str]) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.fields[organization]}"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[pages]}"),
            TextColumn("{task.fields[records]:,} records"),
            TextColumn("{task.fields[budget]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {
            organization_id: self._progress.add_task(
                "queued", total=None, start=False, organization=shown(organization_id), pages="", records=0, budget=""
            )
            for organization_id in organization_ids
        }

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, organization_id: str, event: Event) -> None:
        task = self._tasks[organization_id]
        self._progress.start_task(task)
        match event:
            case PageRead():
                self._progress.update(
                    task,
                    description=event.resource.replace("_", " "),
                    completed=event.number,
                    total=max(event.pages, 1),
                    pages=f"page {event.number}/{event.pages}",
                    records=event.total_entries,
                    budget=f"{event.budget_left} requests left this minute",
                )
            case Waiting():
                self._progress.update(task, description=f"waiting {event.seconds:.0f} s")
            case Retrying():
                self._progress.update(task, description=f"retrying after {shown(event.cause)}")

    def ended(self, organization_id: str, error: str | None) -> None:
        task = self._tasks[organization_id]
        self._progress.update(
            task, description="[red]failed" if error else "[green]done", total=1, completed=1, pages="", budget=""
        )
        self._progress.stop_task(task)


class _LineDisplay(ProgressDisplay):
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}

    def show(self, organization_id: str, event: Event) -> None:
        with self._lock:
            match event:
                case PageRead():
                    if event.number == event.pages or self._is_due(organization_id):
                        click.echo(
                            f"{organization_id}: {event.resource} page {event.number}/{event.pages},"
                            f" {event.total_entries} records, {event.budget_left} requests left this minute",
                            err=True,
                        )
                case Waiting():
                    if event.seconds >= 1:
                        click.echo(f"{organization_id}: waiting {event.seconds:.0f} s: {event.reason}", err=True)
                case Retrying():
                    click.echo(printable(f"{organization_id}: {event.what}: retrying after {event.cause}"), err=True)

    def ended(self, organization_id: str, error: str | None) -> None:
        click.echo(printable(f"{organization_id}: {'failed' if error else 'done'}"), err=True)

    def _is_due(self, organization_id: str) -> bool:
        now = time.monotonic()
        if now - self._last.get(organization_id, -SECONDS_BETWEEN_LINES) < SECONDS_BETWEEN_LINES:
            return False
        self._last[organization_id] = now
        return True
