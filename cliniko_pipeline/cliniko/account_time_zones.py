"""The time zones in Cliniko's responses.

Each business has a `time_zone_identifier`, an IANA name. The account's settings have an undocumented `time_zone`,
mostly the name of a city.
"""

import msgspec

from cliniko_pipeline.time_zones import iana_name


class _Zoned(msgspec.Struct):
    time_zone_identifier: str | None = None
    time_zone: str | None = None


class _Response(msgspec.Struct):
    businesses: list[_Zoned] = []
    account: _Zoned | None = None


_DECODER = msgspec.json.Decoder(_Response)


def time_zones_in(body: bytes) -> list[str]:
    """Return the known IANA names in a response of /businesses or /settings, else []."""
    try:
        answer = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    zoned = [*answer.businesses, *([] if answer.account is None else [answer.account])]
    names = [iana_name(part.time_zone_identifier) or iana_name(part.time_zone) for part in zoned]
    return [name for name in names if name is not None]
