"""Rules for single values of Cliniko's JSON: ids, instants, flags, text and links.

Each function raises UnexpectedResponseError with the field and the rule. The error never contains the value, which may
be a patient's data.
"""

from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import urlsplit

import msgspec

from cliniko_pipeline.errors import UnexpectedResponseError

MAX_ID_LENGTH = 20
"""Cliniko's ids have up to 19 digits (observed in live accounts), like the largest bigint."""
_NO_ID = f"not 1 to {MAX_ID_LENGTH} digits"
MAX_TEXT_LENGTH = 2_000
"""The limit of a name or an e-mail address, in characters."""
MAX_LINK_LENGTH = 2_000
"""In characters."""
MAX_CACHED_LINKS = 16_384
"""The number of links in the cache. They take a few megabytes of memory."""


class LinkTarget(msgspec.Struct, gc=False):
    """The inner part of a link: `{"self": URL}`."""

    self: str | None = None


class Link(msgspec.Struct, gc=False):
    """A link to a related record: `{"links": {"self": URL}}`."""

    links: LinkTarget | None = None


def identifier(field: str, value: str | int) -> str:
    """Return an id as text without leading zeros. Cliniko used to send older ids as numbers."""
    if isinstance(value, int):
        value = str(value) if 0 <= value < 10**MAX_ID_LENGTH else ""
    if not (len(value) <= MAX_ID_LENGTH and value.isascii() and value.isdigit()):
        raise _rule_error(field, _NO_ID)
    return value if value[0] != "0" else value.lstrip("0") or "0"


def instant(field: str, value: str) -> datetime:
    """Return an ISO 8601 instant in UTC. An offset is required."""
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is not None and value[10] in "T ":
            return moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise _rule_error(field, "not an instant in ISO 8601 with Z or an offset")


def optional_instant(field: str, value: str | None) -> datetime | None:
    """Return an instant, or None for null and for "", which Cliniko may send instead of null."""
    return instant(field, value) if value else None


def flag(field: str, value: bool | str | None) -> bool | None:
    """Return a boolean, or None for null and the empty string."""
    if isinstance(value, str):
        if value:
            raise _rule_error(field, "not true or false")
        return None
    return value


def text(field: str, value: str | None) -> str | None:
    """Return text of limited length without NUL characters, because PostgreSQL refuses them."""
    if value and len(value) > MAX_TEXT_LENGTH:
        raise _rule_error(field, f"longer than {MAX_TEXT_LENGTH:,} characters")
    return value.replace("\x00", "") if value and "\x00" in value else value


def linked_id(field: str, link: Link | str | None) -> str | None:
    """Return the id at the end of a link, or None for a missing, null or empty link."""
    if not link:
        return None
    if isinstance(link, str):
        raise _rule_error(field, "not a link")
    url = link.links.self if link.links else None
    if not url:
        return None
    if len(url) > MAX_LINK_LENGTH:
        raise _rule_error(field, f"longer than {MAX_LINK_LENGTH:,} characters")
    found = _id_in_url(url)
    if found is None:
        raise _rule_error(field, _NO_ID)
    return found


@lru_cache(maxsize=MAX_CACHED_LINKS)
def _id_in_url(url: str) -> str | None:
    # Cached because many records have the same link.
    try:
        return identifier("link", _last_path_segment(url))
    except UnexpectedResponseError:
        return None


def linked_id_or_none(link: Link | str | None) -> str | None:
    """Return the id in a link that is not essential, or None if the link is malformed."""
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


def _rule_error(field: str, rule: str) -> UnexpectedResponseError:
    return UnexpectedResponseError(f"{field}: {rule}")
