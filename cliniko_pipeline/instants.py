"""Instants as people write them: in arguments and run configuration."""

from datetime import UTC, datetime

from cliniko_pipeline.errors import SettingsError


def parse_instant(text: str) -> datetime:
    """An ISO 8601 instant, in UTC. Raises SettingsError where the text is none, or has no offset."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise SettingsError(f"'{text}' is not an instant: write it as 2026-01-31T09:30:00Z.")
    return instant.astimezone(UTC)
