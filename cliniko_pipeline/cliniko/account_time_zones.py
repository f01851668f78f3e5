"""The time zones that Cliniko's answers name.

Each business has one (`time_zone_identifier`, an IANA name). The settings of the account had one, too, until they were
left out of the documentation (`time_zone`, mostly the name of a city).
"""

import msgspec

from cliniko_pipeline.time_zones import iana_name


class _Zoned(msgspec.Struct):
    time_zone_identifier: str | None = None
    time_zone: str | None = None


class _Answer(msgspec.Struct):
    businesses: list[_Zoned] = []
    account: _Zoned | None = None


_DECODER = msgspec.json.Decoder(_Answer)


def time_zones_in(body: bytes) -> list[str]:
    """Return the IANA names in an answer of /businesses or /settings, those that are known here; none of another."""
    try:
        answer = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    zoned = [*answer.businesses, *([] if answer.account is None else [answer.account])]
    names = [iana_name(each.time_zone_identifier) or iana_name(each.time_zone) for each in zoned]
    return [name for name in names if name is not None]
