"""Texts of databases and of Cliniko for the terminal: they can hold anything, also what a terminal obeys."""

from rich.markup import escape


def printable(text: str | None) -> str:
    """Return the text with a space for every character that is not printed."""
    return "".join(character if character.isprintable() else " " for character in text or "")


def shown(text: str | None) -> str:
    """Return the text as a table of rich shows it: printable, and without a meaning as markup."""
    return escape(printable(text))
