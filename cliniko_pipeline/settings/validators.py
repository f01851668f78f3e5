"""Validators of settings. Their errors continue a sentence that begins with the variable."""

import ipaddress
import re
from datetime import time
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from cliniko_pipeline.hosts import is_loopback

KEY_COMMAND = "python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"
"""A command that prints a new encryption key, for messages."""

_API_SCOPES = frozenset({"read", "sync", "admin"})

_FERNET_KEY = re.compile(r"[A-Za-z0-9_+/-]{43}=")
_HOST = re.compile(r"([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:\d+)?", re.ASCII)
_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
# ASCII only and without parentheses, because the address is sent in a header between parentheses.
_EMAIL = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]{1,64}@[a-z0-9-]+(\.[a-z0-9-]+)+", re.ASCII | re.IGNORECASE)
_ALERT_URL = re.compile(r"[a-z][a-z0-9]{1,30}://\S+", re.IGNORECASE)
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*\"""")
_ESCAPES = re.compile(r"(?<!\w)[eE]''")
_BETWEEN_URLS = re.compile(r"[\s,]+(?=[A-Za-z][A-Za-z0-9]{1,30}://)")


def encryption_keys(value: str) -> tuple[SecretStr, ...]:
    """Return the Fernet keys, without duplicates."""
    keys = _entries(value)
    for position, key in enumerate(keys, start=1):
        if not _FERNET_KEY.fullmatch(key):
            raise ValueError(
                f"holds something that is not a Fernet key (number {position} of {len(keys)});"
                f" generate one with `{KEY_COMMAND}`."
            )
    return tuple(SecretStr(key) for key in dict.fromkeys(keys))


def contact_email(value: str) -> str:
    """Accept one e-mail address that can be sent in a header."""
    if not _EMAIL.fullmatch(value.strip()):
        raise ValueError("must be one plain e-mail address, such as it@clinic.example.")
    return value.strip()


def hosts(value: str) -> frozenset[str]:
    """Return each `host` or `host:port` in lower case. IPv6 addresses must be in brackets."""
    entries = [entry.lower() for entry in _entries(value)]
    for position, host in enumerate(entries, start=1):
        if not is_host(host):
            raise ValueError(
                f"must be host or host:port, comma-separated, without scheme, path or wildcard"
                f" (number {position} of {len(entries)} is not)."
            )
    return frozenset(entries)


def is_host(text: str) -> bool:
    """Return whether `text`, in lower case, is a host or host:port."""
    try:
        parts = urlsplit(f"//{text}")
        port_in_range = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return port_in_range and _HOST.fullmatch(text) is not None and _is_host_name(parts.hostname or "")


def _is_host_name(name: str) -> bool:
    if ":" not in name:
        return _HOST_NAME.fullmatch(name) is not None
    try:
        ipaddress.IPv6Address(name)
    except ValueError:
        return False
    return True


def alert_urls(value: str) -> tuple[SecretStr, ...]:
    """Return the URLs for Apprise. A comma inside a URL does not end the URL."""
    urls = [url.strip() for url in _BETWEEN_URLS.split(value) if url.strip()]
    if not urls or not all(_ALERT_URL.fullmatch(url) for url in urls):
        raise ValueError(
            "must be Apprise URLs, such as mailto://USER:PASSWORD@HOST?to=ADDRESS or json://HOST/PATH, separated by"
            " white space or commas."
        )
    return tuple(map(SecretStr, urls))


def ui_url(value: str) -> str:
    """Return the URL without a slash at the end."""
    return _web_address(value, "must be the address of the Dagster UI, such as https://dagster.example.org.")


def dagster_url(value: str) -> str:
    """Return the URL without a slash at the end."""
    return _web_address(value, "must be the address of Dagster's webserver, such as http://127.0.0.1:3000.")


def _web_address(value: str, problem: str) -> str:
    parts = urlsplit(value.strip())
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or parts.query:
        raise ValueError(problem)
    return value.strip().rstrip("/")


def oidc_issuer(value: str) -> str:
    """Accept an https URL, or http on loopback, unchanged, to be compared with the claim `iss`."""
    parts = urlsplit(value.strip())
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    if not is_safe or not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "must be an issuer's https URL, exactly as its tokens' claim iss has it, such as https://id.example.org."
        )
    return value.strip()


def claim(value: str) -> str:
    """Accept the name of a claim. Dots separate the names of nested claims."""
    if not re.fullmatch(r"[^\s.]+(\.[^\s.]+)*", value.strip()):
        raise ValueError("must be the name of a claim, such as org_id, or of a nested claim, such as o.id.")
    return value.strip()


def networks(value: str) -> tuple[str, ...]:
    """Return addresses and networks in CIDR notation."""
    try:
        return tuple(str(ipaddress.ip_network(entry)) for entry in _entries(value))
    except ValueError:
        raise ValueError("must be addresses or networks of proxies, such as 127.0.0.1, 10.0.0.0/8.") from None


def oidc_scopes(value: str) -> frozenset[str]:
    """Return the scopes, which are separated by commas or white space."""
    scopes = frozenset(value.replace(",", " ").split())
    if not scopes or not scopes <= _API_SCOPES:
        raise ValueError("must be one or more of read, sync and admin.")
    return scopes


def sql_condition(value: str) -> str:
    """Accept an SQL condition that stays within a pair of parentheses put around it."""
    outside_quotes = _QUOTED.sub("''", value)
    if _ESCAPES.search(outside_quotes):
        raise ValueError("must hold no string with backslash escapes; double the quotes within strings.")
    if any(mark in outside_quotes for mark in (";", "--", "/*", "*/", "$")):
        raise ValueError("must be one SQL condition, without semicolons, comments and dollar signs outside of quotes.")
    if set(_QUOTED.sub("", value)) & set("'\""):
        raise ValueError("has a quote that is never closed.")
    depth = 0
    for mark in re.findall("[()]", outside_quotes):
        depth += 1 if mark == "(" else -1
        if depth < 0:
            break
    if depth:
        raise ValueError("has parentheses that do not match.")
    return value.strip()


def absolute_path(path: Path) -> Path:
    """Return the absolute path with `~` expanded."""
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError("names the home directory of a user that does not exist; write the full path.") from None


def time_of_day(text: str) -> time:
    """Return a time of day written as HH:MM. Raises ValueError."""
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", text.strip(), re.ASCII):
        raise ValueError("must be a time of day such as 02:30")
    return time.fromisoformat(text.strip())


def time_of_day_or_off(value: str) -> time | None:
    """Return a time of day, or None for `off`."""
    if value.strip().lower() == "off":
        return None
    try:
        return time_of_day(value)
    except ValueError:
        raise ValueError("must be a time of day such as 02:30, or off.") from None


def _entries(value: str) -> list[str]:
    return [entry.strip() for entry in value.split(",") if entry.strip()]
