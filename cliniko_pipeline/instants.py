"""Instants in arguments and run configuration."""

from datetime import UTC, datetime

from cliniko_pipeline.errors import ArgumentError


def parse_instant(text: str) -> datetime:
    """Return an ISO 8601 instant with offset in UTC; raise ArgumentError for other text."""
    try:
        instant = datetime.fromisoformat(text)
        if instant.tzinfo is not None:
            return instant.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ArgumentError(f"{text!r} is not an instant: write it as 2026-01-31T09:30:00Z.")
