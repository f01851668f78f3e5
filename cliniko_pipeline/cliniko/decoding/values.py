"""What a single value of Cliniko's JSON must be to be taken over.

Belongs here: the rules for ids, instants, flags, text and links. Each raises UnexpectedResponseError with the
field and the rule it breaks, never with the value, which may be a patient's. Does not: which field has which
rule (wire.py).
"""

from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import urlsplit

import msgspec

from cliniko_pipeline.errors import UnexpectedResponseError

LONGEST_ID = 20
"""Digits; Cliniko's ids have up to 19 (observed against live accounts), PostgreSQL's bigint as many."""


_NO_ID = f"not 1 to {LONGEST_ID} digits"
MAX_TEXT_LENGTH = 2_000
"""Characters of a name or an address; a longer one is no name."""
MAX_LINK_LENGTH = 2_000
"""Characters."""
MOST_LINKS_REMEMBERED = 16_384
"""Some megabytes."""


class LinkTarget(msgspec.Struct, gc=False):
    """The inner part of a link: `{"self": URL}`."""

    self: str | None = None


class Link(msgspec.Struct, gc=False):
    """How Cliniko names a related record: `{"links": {"self": URL}}`."""

    links: LinkTarget | None = None


def identifier(field: str, value: str | int) -> str:
    """Return an id as text without leading zeros: newer ids are above 2**53, older ones came as numbers."""
    if isinstance(value, int):
        value = str(value) if 0 <= value < 10**LONGEST_ID else ""
    if not (len(value) <= LONGEST_ID and value.isascii() and value.isdigit()):
        raise _broken(field, _NO_ID)
    return value if value[0] != "0" else value.lstrip("0") or "0"


def instant(field: str, value: str) -> datetime:
    """Return an ISO 8601 instant in UTC. One that does not say its offset is refused rather than guessed."""
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is not None and value[10] in "T ":
            return moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise _broken(field, "not an instant in ISO 8601 with Z or an offset")


def optional_instant(field: str, value: str | None) -> datetime | None:
    """Return an instant, or None: Cliniko writes an empty string where null is meant."""
    return instant(field, value) if value else None


def flag(field: str, value: bool | str | None) -> bool | None:
    """Return a boolean, or None for null and for the empty string that stands for it."""
    if isinstance(value, str):
        if value:
            raise _broken(field, "not true or false")
        return None
    return value


def text(field: str, value: str | None) -> str | None:
    """Return text as it is, but without NUL, which PostgreSQL's text and jsonb refuse. Refuse what is too long."""
    if value and len(value) > MAX_TEXT_LENGTH:
        raise _broken(field, f"longer than {MAX_TEXT_LENGTH:,} characters")
    return value.replace("\x00", "") if value and "\x00" in value else value


def linked_id(field: str, link: Link | str | None) -> str | None:
    """Return the id a link leads to, the last segment of its path; None for a missing, null or empty link."""
    if not link:
        return None
    if isinstance(link, str):
        raise _broken(field, "not a link")
    url = link.links.self if link.links else None
    if not url:
        return None
    if len(url) > MAX_LINK_LENGTH:
        raise _broken(field, f"longer than {MAX_LINK_LENGTH:,} characters")
    found = _id_at_the_end_of(url)
    if found is None:
        raise _broken(field, _NO_ID)
    return found


@lru_cache(maxsize=MOST_LINKS_REMEMBERED)
def _id_at_the_end_of(url: str) -> str | None:
    """The same link stands in many records."""
    try:
        return identifier("link", _last_path_segment(url))
    except UnexpectedResponseError:
        return None


def linked_id_or_none(link: Link | str | None) -> str | None:
    """Return the same for a link that only names hang on: None where it cannot be read, which loses no record."""
    try:
        return linked_id("link", link)
    except UnexpectedResponseError:
        return None


def _last_path_segment(url: str) -> str:
    if "?" in url or "#" in url or url.endswith("/"):
        try:
            url = urlsplit(url).path.rstrip("/")
        except ValueError:
            return ""
    return url.rpartition("/")[2]


def _broken(field: str, rule: str) -> UnexpectedResponseError:
    return UnexpectedResponseError(f"{field}: {rule}")
