"""Who wants to be told of ended syncs: an HTTP server of the test's own, and what it was sent."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook


@dataclass
class WebhookTarget:
    """`received` are headers and body of each post in order, whatever it was answered.

    Attributes:
        secret: what the posts are verified with.
        status: what it answers.
        drips: whether it sends its headers a byte at a time and never ends them.
    """

    url: str
    secret: str = ""
    status: int = 200
    drips: bool = False
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def verified(self) -> list[dict[str, Any]]:
        """The messages, each by the library of whoever receives one. Raises where one is not signed well."""
        return [Webhook(self.secret).verify(body, headers) for headers, body in self.received]

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.received]

    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.received]


@contextmanager
def opened_target() -> Iterator[WebhookTarget]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            target.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
            if target.drips:
                self._drip()
                return
            self.send_response(target.status)
            if 300 <= target.status < 400:
                self.send_header("Location", f"{target.url}/elsewhere")
            self.send_header("Content-Length", "100000")
            self.end_headers()
            # Much less than that: whoever reads the body waits.
            self.wfile.write(b"x" * 1000)
            self.wfile.flush()
            target.closing.wait(5)

        def _drip(self) -> None:
            try:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
                while not target.closing.wait(0.05):
                    self.wfile.write(b"x")
                    self.wfile.flush()
            except OSError:
                """Whoever asked has gone."""

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        target = WebhookTarget(f"http://127.0.0.1:{server.server_port}/hooks?token=target-token")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield target
        finally:
            target.closing.set()
            server.shutdown()


def closed_port() -> int:
    """Where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
