"""How the application is served: what a connection may hold open, and for how long, before anybody is known.

An ASGI application sees a request when its head is whole. What comes before that only the protocol can end.
"""

import asyncio
import logging
from typing import Any, ClassVar

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from cliniko_pipeline.settings import Settings

MAX_CONNECTIONS = 500
"""Half of the files that a process may usually open; the rest is for the database and Dagster."""

HEAD_SECONDS = 10
BODY_SECONDS = 20
"""Webhooks have a shorter limit of their own, with an answer that says so."""

SECONDS_TO_END = 10
SECONDS_BETWEEN_WARNINGS = 60

_LOG = logging.getLogger(__name__)


class BoundedProtocol(H11Protocol):
    """A connection that must send a whole head and a whole body in time, and is refused where there are too many."""

    _warned_at: ClassVar[float | None] = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._awaited: Any = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or end it where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._warn()
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._unset_deadline()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the clock where the client has something to send. A byte now and then does not start it anew."""
        awaited: Any = self.conn.their_state
        if awaited is self._awaited:
            return
        self._unset_deadline()
        self._awaited = awaited
        limits: dict[Any, float] = {h11.IDLE: HEAD_SECONDS, h11.SEND_BODY: BODY_SECONDS}
        seconds = limits.get(awaited)
        if seconds is not None:
            self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _unset_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _warn(self) -> None:
        now = self.loop.time()
        before = BoundedProtocol._warned_at
        if before is None or now - before > SECONDS_BETWEEN_WARNINGS:
            BoundedProtocol._warned_at = now
            _LOG.warning(
                "%d connections are open, the most there may be: further ones are closed. Put a proxy in front that"
                " limits them for each client.",
                MAX_CONNECTIONS,
            )


def server_configuration(application: ASGIApp, settings: Settings, **options: Any) -> uvicorn.Config:
    """Return how uvicorn serves the application, with further options of uvicorn's."""
    return uvicorn.Config(
        application,
        # Limits heads to some ten KiB, and takes no header from after the body.
        http=BoundedProtocol,
        ws="none",
        log_config=None,
        # What is asked for names organizations and contacts.
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SECONDS_TO_END,
        # Whoever may write X-Forwarded-For chooses the address that a refusal is noted with.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        **options,
    )
