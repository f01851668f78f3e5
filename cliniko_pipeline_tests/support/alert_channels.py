"""An HTTP server that acts as an alert channel and stores the received messages."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from cliniko_pipeline_tests.support.webhook_targets import serving


@dataclass
class WebhookChannel:
    """A channel. `received` has the messages in order. If `is_down`, the channel refuses messages."""

    url: str
    received: list[dict[str, Any]] = field(default_factory=list)
    is_down: bool = False

    @property
    def titles(self) -> list[str]:
        return [message["title"] for message in self.received]


@contextmanager
def opened_channel() -> Iterator[WebhookChannel]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not channel.is_down:
                channel.received.append(json.loads(body))
            self.send_response(503 if channel.is_down else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with serving(Handler) as server:
        channel = WebhookChannel(f"json://hook:channel-secret@127.0.0.1:{server.server_port}/alerts")
        yield channel
