"""Records as bytes: JSON whose links are not yet bound to a host.

In a record (a dict) a link is a member whose value begins with `{base}/`. Serialised, that beginning is one NUL
byte, which JSON text cannot contain, so that a whole page is bound to its host by one replacement and no text
of a record can be mistaken for a link.
"""

import json
from typing import Any

import msgspec

LINK_PREFIX = "{base}"
"""Stands for `https://api.{shard}.cliniko.com/v1` in the links of a stored record."""

_UNBOUND = b"\x00"
# A quotation mark inside a text is escaped in JSON, so this can only be the start of a member's value.
_WRITTEN_START = b':"{base}/'
_UNBOUND_START = b':"\x00/'
_encode_utf8 = msgspec.json.Encoder().encode
_decode_utf8 = msgspec.json.Decoder().decode


def link(path: str) -> dict[str, dict[str, str]]:
    """Link to `path` ("patients/82") as the API shows a related object: an object that holds only the link."""
    return {"links": {"self": f"{LINK_PREFIX}/{path}"}}


def serialise(record: Any) -> bytes:
    """Make the record's JSON with unbound links.

    UTF-8, except that a record with a lone surrogate (which UTF-8 cannot hold) is escaped to ASCII.
    """
    try:
        encoded = _encode_utf8(record)
    except (UnicodeEncodeError, OverflowError):
        encoded = json.dumps(record, separators=(",", ":")).encode("ascii")
    return encoded.replace(_WRITTEN_START, _UNBOUND_START)


def bind(encoded: bytes, base_url: str) -> bytes:
    """Return the bytes with every link bound to `base_url`."""
    return encoded.replace(_UNBOUND, base_url.encode("ascii"))


def parse(encoded: bytes, base_url: str = LINK_PREFIX) -> Any:
    """Restore what `serialise` was given, its links bound to `base_url`."""
    bound = bind(encoded, base_url)
    try:
        return _decode_utf8(bound)
    except msgspec.DecodeError:
        # msgspec refuses lone surrogates and integers wider than 64 bits; the standard library takes them.
        return json.loads(bound)
