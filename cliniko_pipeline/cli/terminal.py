"""Safe output for terminals, because texts from databases and Cliniko can contain escape sequences."""

from datetime import UTC, datetime

import click
from rich.console import Console
from rich.markup import escape

_UNLIMITED_WIDTH = 2000


def printable(text: str | None) -> str:
    """Return the text with a space for every unprintable character."""
    return "".join(character if character.isprintable() else " " for character in text or "")


def shown(text: str | None) -> str:
    """Return the text for a Rich table, with unprintable characters replaced and markup escaped."""
    return escape(printable(text))


def warn(text: object) -> None:
    """Print a warning on standard output."""
    click.secho(f"! {text}", fg="yellow")


def utc_text(instant: datetime | None) -> str:
    """Return the instant to the minute, or `never` for None."""
    return "never" if instant is None else f"{instant.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def output_console() -> Console:
    """Return a console for standard output. Table rows wrap only in a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=_UNLIMITED_WIDTH)
