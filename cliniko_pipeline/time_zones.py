"""Time zones by their names in the IANA time zone database."""

from datetime import UTC, tzinfo
from functools import cache
from zoneinfo import ZoneInfo, available_timezones


def time_zone(name: str | None) -> tzinfo:
    """Return the time zone of this name, or UTC if the name is None or unknown on this machine."""
    try:
        return UTC if name is None else ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return UTC


_known = cache(available_timezones)


def iana_name(text: str | None) -> str | None:
    """Return the IANA name for a name or a city ("Sydney"), or None unless exactly one fits."""
    known = _known()
    if text is None or text in known:
        return text
    of_the_city = [name for name in known if name.endswith(f"/{text.strip().replace(' ', '_')}")]
    return of_the_city[0] if len(of_the_city) == 1 else None
