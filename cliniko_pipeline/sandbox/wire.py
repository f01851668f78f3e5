"""The JSON of records, with links that are not yet bound to a host.

In a record (a dict), the value of each link begins with the placeholder `{base}/`. In the record's JSON, a NUL byte
stands in place of `{base}`. Other JSON text cannot contain NUL bytes. So one replacement of all NUL bytes binds the
links of a page to a host, and changes nothing else.
"""

import json
from typing import Any

import msgspec

LINK_PREFIX = "{base}"
"""The placeholder for `https://api.{shard}.cliniko.com/v1` in the links of a stored record."""

_UNBOUND = b"\x00"
# A quotation mark inside a text is escaped in JSON, so this can only be the start of a member's value.
_WRITTEN_START = b':"{base}/'
_UNBOUND_START = b':"\x00/'
_encode_utf8 = msgspec.json.Encoder().encode
_decode_utf8 = msgspec.json.Decoder().decode


def link(path: str) -> dict[str, dict[str, str]]:
    """Return a link to `path` ("patients/82") in the API's form for related objects."""
    return {"links": {"self": f"{LINK_PREFIX}/{path}"}}


def serialise(record: Any) -> bytes:
    """Return the record's JSON with unbound links, in ASCII if UTF-8 cannot represent it."""
    try:
        encoded = _encode_utf8(record)
    except (UnicodeEncodeError, OverflowError):
        encoded = json.dumps(record, separators=(",", ":")).encode("ascii")
    return encoded.replace(_WRITTEN_START, _UNBOUND_START)


def bind(encoded: bytes, base_url: str) -> bytes:
    """Return the bytes with every link bound to `base_url`."""
    return encoded.replace(_UNBOUND, base_url.encode("ascii"))


def parse(encoded: bytes, base_url: str = LINK_PREFIX) -> Any:
    """Return the record from its JSON, with its links bound to `base_url`."""
    bound = bind(encoded, base_url)
    try:
        return _decode_utf8(bound)
    except msgspec.DecodeError:
        # msgspec refuses lone surrogates and integers wider than 64 bits; the standard library accepts them.
        return json.loads(bound)
