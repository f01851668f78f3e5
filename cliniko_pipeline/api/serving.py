"""Configuration of uvicorn that limits connections and the time to send a request.

An ASGI application sees a request only after its head has arrived. Until then, only uvicorn can close the connection.
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
"""Half of the usual limit of open files. The other half is for the database and Dagster."""

HEAD_SECONDS = 10
BODY_SECONDS = 20
"""The webhook route has a shorter limit, after which it responds with status 408."""

SHUTDOWN_SECONDS = 10
WARNING_INTERVAL_SECONDS = 60

_LOG = logging.getLogger(__name__)


class BoundedProtocol(H11Protocol):
    """A connection that is closed if too many connections are open, or if a head or body is late."""

    _warned_at: ClassVar[float | None] = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._client_state: Any = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or close it if too many are open."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._warn()
            transport.abort()
        else:
            self._set_deadline()

    def data_received(self, data: bytes) -> None:
        """Parse the data and update the timer."""
        super().data_received(data)
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection's timer."""
        self._unset_deadline()
        super().connection_lost(exc)

    def _set_deadline(self) -> None:
        """Start the timer when a head or body starts. Further bytes do not extend the time."""
        state: Any = self.conn.their_state
        if state is self._client_state:
            return
        self._unset_deadline()
        self._client_state = state
        limits: dict[Any, float] = {h11.IDLE: HEAD_SECONDS, h11.SEND_BODY: BODY_SECONDS}
        seconds = limits.get(state)
        if seconds is not None:
            self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _unset_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _warn(self) -> None:
        now = self.loop.time()
        warned_at = BoundedProtocol._warned_at
        if warned_at is None or now - warned_at > WARNING_INTERVAL_SECONDS:
            BoundedProtocol._warned_at = now
            _LOG.warning(
                "%d connections are open, which is the limit: further ones are closed. Put a proxy with a limit per"
                " client in front of the service.",
                MAX_CONNECTIONS,
            )


def server_configuration(application: ASGIApp, settings: Settings, **options: Any) -> uvicorn.Config:
    """Return the configuration for the application. `options` are passed to uvicorn."""
    return uvicorn.Config(
        application,
        # h11 limits heads to 16 KiB, and ignores headers after the body (trailers).
        http=BoundedProtocol,
        ws="none",
        log_config=None,
        # The access log is off, because URLs contain ids of organizations and contacts.
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        # Only trusted proxies may send X-Forwarded-For: the address in this header is stored with a refusal.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        **options,
    )
