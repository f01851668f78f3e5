"""An HTTP server that acts as the target of webhook deliveries and stores the received requests."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook

from cliniko_pipeline_tests.support.waiting import LIMIT_SECONDS


@dataclass
class WebhookTarget:
    """A target that receives deliveries.

    Attributes:
        secret: secret that verifies the requests.
        status: status of the target's responses.
        drips: whether the target sends endless headers, a byte at a time.
        received: headers and bodies of all requests in order.
    """

    url: str
    secret: str = ""
    status: int = 200
    drips: bool = False
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def verified(self) -> list[dict[str, Any]]:
        """Return the messages. Raise an error if a signature is wrong."""
        return [Webhook(self.secret).verify(body, headers) for headers, body in self.received]

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.received]


class _Handler(BaseHTTPRequestHandler):
    timeout = LIMIT_SECONDS

    @property
    def target(self) -> WebhookTarget:
        return self.server.target

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.target.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.close_connection = True
        # The sender closes the connection when it has seen enough.
        with suppress(OSError):
            if self.target.drips:
                self._drip()
            else:
                self._answer()

    def _answer(self) -> None:
        self.send_response(self.target.status)
        if 300 <= self.target.status < 400:
            self.send_header("Location", f"{self.target.url}/elsewhere")
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(b"x" * 1000)
        self.wfile.flush()
        # The rest of the body is never sent, so a sender that reads the body times out.
        self.rfile.read(1)

    def _drip(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
        while not self.target.closing.wait(0.05):
            self.wfile.write(b"x")
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def opened_target() -> Iterator[WebhookTarget]:
    with serving(_Handler) as server:
        server.target = target = WebhookTarget(f"http://127.0.0.1:{server.server_port}/hooks?token=target-token")
        try:
            yield target
        finally:
            target.closing.set()


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[ThreadingHTTPServer]:
    """Serve on a free port, in daemon threads."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def closed_port() -> int:
    """Return a port without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
