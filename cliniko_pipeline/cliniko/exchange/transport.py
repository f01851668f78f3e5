"""Requests sent by libcurl, behind httpx's interface.

libcurl reads a page with a fifth of the CPU time of httpx's own transport. libcurl does not hold the interpreter's
lock, so several pages can be read in parallel.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import certifi
import httpx
import pycurl

from cliniko_pipeline.daemon_threads import DaemonThreads, wait_for
from cliniko_pipeline.hosts import is_loopback

BUFFER_BYTES = 512 * 1024
_MILLISECONDS = 1000


@dataclass(frozen=True)
class Limits:
    """The limits of one request. `body_bytes` limits the unpacked body."""

    connect_seconds: float = 10.0
    silent_seconds: float = 30.0  # without a received byte
    total_seconds: float = 120.0
    body_bytes: int = 8 * 1024 * 1024


class BodyTooLargeError(httpx.DecodingError):
    """The response's body is larger than the limit after unpacking."""


class CurlTransport(httpx.BaseTransport):
    """A thread-safe transport that uses libcurl, with one connection per thread.

    It follows no redirects, and uses the environment's proxies except for this machine. It trusts certifi's
    certificates, like httpx's own transport.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._local = threading.local()
        self._thread = DaemonThreads(1, "cliniko-request")
        self._closing = threading.Event()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and read its complete response. Raises httpx.RequestError."""
        if threading.current_thread() is not threading.main_thread():
            return self._exchange(request)
        # Use another thread than the main thread, where curl would swallow a KeyboardInterrupt.
        return wait_for(self._thread.submit(lambda: self._exchange(request)))

    def close(self) -> None:
        """Abort the requests in flight, which then raise an error."""
        self._closing.set()
        self._thread.close()

    def _exchange(self, request: httpx.Request) -> httpx.Response:
        curl = self._handle()
        received = _Received(self._limits.body_bytes, self._closing)
        curl.setopt(pycurl.URL, str(request.url))
        if is_loopback(request.url.host):
            curl.setopt(pycurl.PROXY, "")  # A proxy cannot reach this machine's loopback.
        else:
            curl.unsetopt(pycurl.PROXY)
        curl.setopt(pycurl.HTTPHEADER, _header_lines(request.headers))
        curl.setopt(pycurl.HEADERFUNCTION, received.take_header)
        curl.setopt(pycurl.WRITEFUNCTION, received.take_body)
        curl.setopt(pycurl.XFERINFOFUNCTION, received.is_aborted)
        try:
            curl.perform()
        except pycurl.error as error:
            raise _request_error(int(error.args[0]), received) from None
        return httpx.Response(
            curl.getinfo(pycurl.RESPONSE_CODE), headers=received.headers, content=received.body.getvalue()
        )

    def _handle(self) -> Any:
        curl: pycurl.Curl | None = getattr(self._local, "curl", None)
        if curl is None:
            curl = self._local.curl = self._open()
        return curl

    def _open(self) -> pycurl.Curl:
        curl = pycurl.Curl()
        limits = self._limits
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.NOPROGRESS, 0)
        curl.setopt(pycurl.BUFFERSIZE, BUFFER_BYTES)
        curl.setopt(pycurl.FOLLOWLOCATION, 0)
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        curl.setopt(pycurl.CONNECTTIMEOUT_MS, int(limits.connect_seconds * _MILLISECONDS))
        curl.setopt(pycurl.TIMEOUT_MS, int(limits.total_seconds * _MILLISECONDS))
        curl.setopt(pycurl.LOW_SPEED_LIMIT, 1)
        curl.setopt(pycurl.LOW_SPEED_TIME, max(1, round(limits.silent_seconds)))
        curl.setopt(pycurl.ACCEPT_ENCODING, "")
        curl.setopt(pycurl.CAINFO, certifi.where())
        curl.setopt(pycurl.NETRC, pycurl.NETRC_IGNORED)
        return curl


@dataclass
class _Received:
    """The received part of a response."""

    max_body_bytes: int
    closing: threading.Event
    body: BytesIO = field(default_factory=BytesIO)
    headers: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    is_too_large: bool = False

    def take_header(self, line: bytes) -> None:
        if line.startswith(b"HTTP/"):
            self.headers.clear()  # drops the headers of a proxy or an interim response
            return
        name, colon, value = line.partition(b":")
        # Skip the body's original length and encoding, because curl has unpacked the body.
        if colon and name.strip().lower() not in {b"content-encoding", b"content-length", b"transfer-encoding"}:
            self.headers.append((name.strip(), value.strip()))

    def take_body(self, chunk: bytes) -> int:
        self.is_too_large = self.body.tell() + len(chunk) > self.max_body_bytes
        return 0 if self.is_too_large else self.body.write(chunk)

    def is_aborted(self, *_: float) -> int:
        return int(self.closing.is_set())


_ERRORS: Mapping[int, type[httpx.RequestError]] = {
    pycurl.E_COULDNT_RESOLVE_HOST: httpx.ConnectError,
    pycurl.E_COULDNT_CONNECT: httpx.ConnectError,
    pycurl.E_SSL_CONNECT_ERROR: httpx.ConnectError,
    pycurl.E_PEER_FAILED_VERIFICATION: httpx.ConnectError,
    pycurl.E_COULDNT_RESOLVE_PROXY: httpx.ProxyError,
    pycurl.E_OPERATION_TIMEDOUT: httpx.ReadTimeout,
    pycurl.E_BAD_CONTENT_ENCODING: httpx.DecodingError,
    pycurl.E_UNSUPPORTED_PROTOCOL: httpx.UnsupportedProtocol,
}


def _request_error(code: int, received: _Received) -> httpx.RequestError:
    if received.is_too_large:
        return BodyTooLargeError("the body is too large")
    # Leave out curl's own text, which may contain the URL.
    return _ERRORS.get(code, httpx.ReadError)(f"curl's error {code}")


def _header_lines(headers: httpx.Headers) -> list[str]:
    # curl sets `Connection` and `Accept-Encoding` itself. Without a blank `Expect`, it may wait for a 100 response.
    lines = [f"{name}: {value}" for name, value in headers.items() if name not in {"connection", "accept-encoding"}]
    return [*lines, "Expect:"]
