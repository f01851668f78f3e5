"""One signed HTTP request to a webhook target, limited in time."""

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from http import HTTPStatus
from typing import cast
from urllib.parse import urlsplit

import certifi
import httpx

from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.hosts import is_loopback

CONNECT_SECONDS = 5
EXCHANGE_SECONDS = 10
"""The limit for request and response together. Without it, a slow target would delay other deliveries."""

_LONGEST_URL = 2048


@dataclass(frozen=True)
class Destination:
    """A target's URL and signing secret. Both are secret."""

    url: str = field(repr=False)
    secret: str = field(repr=False)

    @property
    def label(self) -> str:
        """The URL's scheme, host and port. They are no secret, so they may be shown."""
        parts = urlsplit(self.url)
        port = "" if parts.port is None else f":{parts.port}"
        host = parts.hostname or ""
        return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}"

    def as_text(self) -> str:
        """Return the text that the vault encrypts."""
        return json.dumps({"url": self.url, "secret": self.secret})

    @classmethod
    def from_text(cls, text: str) -> "Destination":
        """Return the destination from a text that `as_text` returned."""
        members = json.loads(text)
        return cls(members["url"], members["secret"])


@dataclass(frozen=True)
class Answer:
    """The result of an attempt.

    Attributes:
        status: the HTTP status, or None if there was no response.
        outcome: a short description, without secrets.
    """

    status: int | None
    outcome: str

    @property
    def is_taken(self) -> bool:
        """Whether the target accepted the message."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_gone(self) -> bool:
        """Whether the target accepts no further messages."""
        return self.status == HTTPStatus.GONE


def require_usable(url: str) -> None:
    """Raise ArgumentError if the URL cannot be a target.

    The message does not show the URL, which may contain a secret.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ArgumentError("This is not a URL.") from None
    host = parts.hostname or ""
    if not url.isascii() or not url.isprintable() or " " in url or len(url) > _LONGEST_URL or not host or port == 0:
        raise ArgumentError("This is not an ASCII URL such as https://hooks.example.org/cliniko.")
    if parts.username is not None or parts.password is not None:
        raise ArgumentError("The URL must contain no user and no password: deliveries are signed instead.")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise ArgumentError("The URL must begin with https://. Only targets on this machine may use http://.")


def post(to: Destination, message_id: str, body: str, now: datetime) -> Answer:
    """Sign and post the message within `EXCHANGE_SECONDS`. `now` is signed, too. Raise nothing.

    Redirects are not followed. The response's body is not read.
    """
    # Do not use asyncio.run, because it would wait for the end of a name lookup that exceeds the limit.
    with closing(asyncio.new_event_loop()) as loop:
        try:
            status = loop.run_until_complete(_exchange(to.url, _headers(to.secret, message_id, body, now), body))
        # A wrong proxy setting in the environment raises ImportError or ValueError.
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ImportError, ValueError) as error:
            return Answer(None, _failure(error))
    return Answer(status, f"HTTP {status}")


async def _exchange(url: str, headers: Mapping[str, str], body: str) -> int:
    # At the level INFO, httpx logs URLs, which may contain secrets.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    timeout = httpx.Timeout(EXCHANGE_SECONDS, connect=CONNECT_SECONDS)
    async with (
        asyncio.timeout(EXCHANGE_SECONDS),
        httpx.AsyncClient(verify=_trusted_certificates(), timeout=timeout, headers=headers) as client,
        client.stream("POST", url, content=body) as response,
    ):
        return response.status_code


@cache
def _trusted_certificates() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certifi.where())


def _headers(secret: str, message_id: str, body: str, now: datetime) -> Mapping[str, str]:
    # Imported here, because most commands post nothing.
    from standardwebhooks import Webhook  # noqa: PLC0415

    return {
        "Content-Type": "application/json",
        "User-Agent": "cliniko_pipeline",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, now, body),
    }


def _failure(error: BaseException) -> str:
    """Describe the failure without the error's own text, which may contain the URL."""
    texts: tuple[tuple[type[BaseException], str], ...] = (
        (ssl.SSLCertVerificationError, "the certificate is not trusted"),
        (ssl.SSLError, "no TLS connection"),
        (socket.gaierror, "the host name is unknown"),
        (ConnectionRefusedError, "the connection was refused"),
        (TimeoutError, f"no answer within {EXCHANGE_SECONDS} s"),
        (httpx.TimeoutException, f"no answer within {EXCHANGE_SECONDS} s"),
    )
    causes = list(_causes(error))
    return next((text for kind, text in texts if any(isinstance(cause, kind) for cause in causes)), "no answer")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for member in cast("BaseExceptionGroup[BaseException]", error).exceptions:
                yield from _causes(member)
        error = error.__cause__ or error.__context__
