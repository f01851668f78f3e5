"""The rules for the base URL of an account, and for the hosts that may receive an API key."""

import re
from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit

from cliniko_pipeline.errors import CredentialsFormatError
from cliniko_pipeline.hosts import is_loopback

DEFAULT_SHARD = "au1"
"""The shard of older API keys, which do not end with a shard."""

_SHARD = re.compile(r"[a-z]{2}[0-9]{1,2}")
_CLINIKO_HOST = re.compile(r"api\.([a-z]{2}[0-9]{1,2})\.cliniko\.com")
_PLAIN_PATH = re.compile(r"(?:/(?!\.\.?(?:/|$))[A-Za-z0-9._~-]+)*/?")
_VISIBLE_ASCII = re.compile(r"[!-~]+")
_DEFAULT_PORTS = {"https": 443, "http": 80}

_HOST_RULE = (
    "use https://api.{shard}.cliniko.com/v1 with a shard such as au4, or a host[:port] named in "
    "CLINIKO_ALLOWED_HOSTS (plain http on loopback only), without user, query and fragment"
)


def shard_of(api_key: str) -> str:
    """Return the shard of an API key, the text after its last ``-``, or au1 without ``-``.

    Raises CredentialsFormatError if that text cannot be a shard.
    """
    _, dash, ending = api_key.rpartition("-")
    return _checked_shard(ending, described="the API key's ending after its last '-'") if dash else DEFAULT_SHARD


def api_url_for(shard: str) -> str:
    """Return the base URL of a shard, without a slash at the end.

    Raises CredentialsFormatError unless the shard is two letters and one or two digits. Any such shard is accepted,
    because Cliniko adds shards.
    """
    return f"https://api.{_checked_shard(shard, described='the region')}.cliniko.com/v1"


def resolve_api_url(*, api_key: str, region: str | None, api_url: str | None, allowed_hosts: Collection[str]) -> str:
    """Return the canonical base URL from `api_url`, else `region`, else `api_key`.

    Blank values are ignored. `api_url` must be Cliniko's own or on one of `allowed_hosts`. An allowed host without a
    port allows only the default port of the scheme. Raises CredentialsFormatError for any other URL or shard.
    """
    if api_url and api_url.strip():
        return _checked_api_url(api_url.strip(), allowed_hosts)
    if region and region.strip():
        return api_url_for(region.strip())
    return api_url_for(shard_of(api_key))


def _checked_shard(shard: str, *, described: str) -> str:
    shard = shard.lower()
    if not _SHARD.fullmatch(shard):
        raise CredentialsFormatError(
            f"{described[0].upper()}{described[1:]} is not a shard (two letters, one or two digits, such as au4): "
            "store the key exactly as Cliniko shows it, or with its region"
        )
    return shard


def _checked_api_url(api_url: str, allowed_hosts: Collection[str]) -> str:
    parts = _split(api_url)
    return _cliniko_url(parts) or _allowed_url(parts, allowed_hosts)


def _split(api_url: str) -> SplitResult:
    # Refuse every URL that two parsers could read differently. For example, urlsplit drops tabs, line breaks and an
    # empty '?', and browsers read '\' as '/'.
    if not _VISIBLE_ASCII.fullmatch(api_url) or any(character in api_url for character in "\\@?#%"):
        raise _refused("contains characters that no API URL has")
    try:
        parts = urlsplit(api_url)
        _ = parts.port  # raises ValueError for an impossible port
    except ValueError:
        parts = None
    if parts is None or parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise _refused("is not a complete http(s) URL")
    if not _PLAIN_PATH.fullmatch(parts.path):
        raise _refused("has an unusual path")
    return parts


def _cliniko_url(parts: SplitResult) -> str | None:
    match = _CLINIKO_HOST.fullmatch(parts.hostname or "")
    if not match:
        return None
    if parts.scheme != "https" or _port(parts) != 443 or parts.path.rstrip("/") != "/v1":
        raise _refused("is on Cliniko's host, but is not https on the default port with the path /v1")
    return api_url_for(match[1])


def _allowed_url(parts: SplitResult, allowed_hosts: Collection[str]) -> str:
    host, port = parts.hostname or "", _port(parts)
    if not any(_matches(allowed, host, port, parts.scheme) for allowed in allowed_hosts):
        raise _refused("names a host that is not allowed")
    if parts.scheme == "http" and not is_loopback(host):
        raise _refused("would send the API key unencrypted")
    bracketed = f"[{host}]" if ":" in host else host
    suffix = "" if port == _DEFAULT_PORTS[parts.scheme] else f":{port}"
    return f"{parts.scheme}://{bracketed}{suffix}{parts.path.rstrip('/')}"


def _matches(allowed: str, host: str, port: int, scheme: str) -> bool:
    try:
        entry = urlsplit(f"{scheme}://{allowed.strip()}")
        return entry.netloc == allowed.strip() and (entry.hostname, _port(entry)) == (host, port)
    except ValueError:
        return False


def _port(parts: SplitResult) -> int:
    return _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port


def _refused(why: str) -> CredentialsFormatError:
    return CredentialsFormatError(f"The Cliniko API URL {why}: {_HOST_RULE}")
