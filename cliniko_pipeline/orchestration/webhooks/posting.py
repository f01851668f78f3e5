"""Posts a message to a target: one exchange, signed, limited in time, whose answer is a status and no more."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from urllib.parse import urlsplit

import certifi
import pycurl

from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.hosts import is_loopback

CONNECT_SECONDS = 5
WHOLE_SECONDS = 10
"""For everything, the answer's last byte included: whoever answers by the drop holds up nobody."""

_LONGEST_URL = 2048
_MILLISECONDS = 1000


@dataclass(frozen=True)
class Destination:
    """Where to post, and what to sign with; both may open doors."""

    url: str = field(repr=False)
    secret: str = field(repr=False)

    @property
    def label(self) -> str:
        """What may be shown of it."""
        parts = urlsplit(self.url)
        port = "" if parts.port is None else f":{parts.port}"
        host = parts.hostname or ""
        return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}"

    def as_text(self) -> str:
        """For the vault."""
        return json.dumps({"url": self.url, "secret": self.secret})

    @classmethod
    def from_text(cls, text: str) -> "Destination":
        """What `as_text` made."""
        members = json.loads(text)
        return cls(members["url"], members["secret"])


@dataclass(frozen=True)
class Answer:
    """What came of an attempt. `status` is None where there was no answer; `outcome` may be shown."""

    status: int | None
    outcome: str

    @property
    def is_taken(self) -> bool:
        """Whether the target has it now."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_gone(self) -> bool:
        """Whether the target wants nothing any more."""
        return self.status == HTTPStatus.GONE


def require_usable(url: str) -> None:
    """Raises ArgumentError where nothing may be posted there. Never shows the URL, which may hold a secret."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ArgumentError("This is not a URL.") from None
    host = parts.hostname or ""
    if not url.isascii() or not url.isprintable() or " " in url or len(url) > _LONGEST_URL or not host or port == 0:
        raise ArgumentError("This is not a URL, such as https://hooks.example.org/cliniko, in plain letters.")
    if parts.username is not None or parts.password is not None:
        raise ArgumentError("The URL must hold no user and no password: what is posted is signed instead.")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise ArgumentError("The URL must begin with https://, or, on this machine only, with http://.")


def post(to: Destination, message_id: str, body: str, now: datetime) -> Answer:
    """Posts the message, signed as of `now`. Takes `WHOLE_SECONDS` at most, and raises nothing. Redirects are not
    followed, and of the answer nothing but its status is read.
    """
    curl = pycurl.Curl()
    try:
        for option, value in _options(to, message_id, body, now).items():
            curl.setopt(option, value)
        curl.perform()
        return _answered(curl)
    except pycurl.error as error:
        code = int(error.args[0])
        # The body was refused, by us: the status had come.
        return _answered(curl) if code == pycurl.E_WRITE_ERROR else Answer(None, _FAILURES.get(code, "no answer"))
    finally:
        curl.close()


def _options(to: Destination, message_id: str, body: str, now: datetime) -> Mapping[int, object]:
    return {
        pycurl.URL: to.url,
        pycurl.HTTPHEADER: [f"{name}: {value}" for name, value in _headers(to.secret, message_id, body, now).items()],
        pycurl.POSTFIELDS: body,
        pycurl.WRITEFUNCTION: _refuse,
        pycurl.HEADERFUNCTION: _pass_over,
        pycurl.FOLLOWLOCATION: 0,
        pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
        pycurl.CONNECTTIMEOUT_MS: CONNECT_SECONDS * _MILLISECONDS,
        pycurl.TIMEOUT_MS: WHOLE_SECONDS * _MILLISECONDS,
        pycurl.NOSIGNAL: 1,
        pycurl.CAINFO: certifi.where(),
        pycurl.NETRC: pycurl.NETRC_IGNORED,
    }


def _headers(secret: str, message_id: str, body: str, now: datetime) -> Mapping[str, str]:
    # Only who sends needs it.
    from standardwebhooks import Webhook  # noqa: PLC0415

    return {
        "Content-Type": "application/json",
        "User-Agent": "cliniko_pipeline",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, now, body),
        # Otherwise curl may wait for a 100.
        "Expect": "",
    }


def _answered(curl: pycurl.Curl) -> Answer:
    status = int(curl.getinfo(pycurl.RESPONSE_CODE))
    return Answer(status, f"HTTP {status}") if status else Answer(None, "no answer")


def _refuse(_chunk: bytes) -> int:
    return 0


def _pass_over(_line: bytes) -> None:
    """Nothing in them is needed."""


# curl's own text may hold the address.
_FAILURES = {
    pycurl.E_COULDNT_RESOLVE_HOST: "the host name is unknown",
    pycurl.E_COULDNT_CONNECT: "the connection was refused",
    pycurl.E_SSL_CONNECT_ERROR: "no TLS connection",
    pycurl.E_PEER_FAILED_VERIFICATION: "the certificate is not trusted",
    pycurl.E_OPERATION_TIMEDOUT: f"no answer within {WHOLE_SECONDS} s",
}
