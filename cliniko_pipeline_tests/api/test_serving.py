"""Tests of the limits on connections, with sockets."""

import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import httpx
import pytest

from cliniko_pipeline.api import serving
from cliniko_pipeline_tests.support.services import ServiceAlone, token
from cliniko_pipeline_tests.support.waiting import LIMIT_SECONDS, wait_until

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v1/organizations/alpha/syncs HTTP/1.1\r\nHost: x\r\n"


@contextmanager
def connected(service: ServiceAlone) -> Iterator[socket.socket]:
    parts = urlsplit(service.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), LIMIT_SECONDS) as connection:
        yield connection


def rest(connection: socket.socket) -> bytes:
    """Return all bytes that arrive until the service closes the connection."""
    found = b""
    try:
        while more := connection.recv(65536):
            found += more
    except ConnectionError:
        pass
    return found


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /healthz HT", POST + b"Content-Length: 9\r\n\r\n{", GET + b"GET"],
)
def test_silent_connections_are_closed(service: ServiceAlone, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(serving, "BODY_SECONDS", 0.2)
    with connected(service) as connection:
        connection.sendall(sent)
        rest(connection)  # so that a time-out fails the test


def test_endless_head_is_refused(service: ServiceAlone) -> None:
    with connected(service) as connection:
        try:
            for _ in range(256):
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 16384)
        except ConnectionError:
            return
        assert rest(connection).startswith(b"HTTP/1.1 400 ")


def test_token_in_a_trailer_is_not_one(service: ServiceAlone) -> None:
    trailer = f"0\r\nAuthorization: Bearer {token(service.database, 'sync')}\r\n\r\n".encode()
    with connected(service) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + trailer)
        assert rest(connection).startswith(b"HTTP/1.1 401 ")


def test_too_many_connections_are_closed_and_logged(
    service: ServiceAlone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serving, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(serving.BoundedProtocol, "_warned_at", None)
    with caplog.at_level(logging.WARNING), ExitStack() as opened:
        connections = [opened.enter_context(connected(service)) for _ in range(4)]
        assert rest(connections[-1]) == b""
    assert [record.message[:23] for record in caplog.records] == ["3 connections are open,"]
    wait_until(lambda: _is_healthy(service), "the service accepts no connection")


def _is_healthy(service: ServiceAlone) -> bool:
    try:
        return httpx.get(f"{service.url}/healthz", trust_env=False).is_success
    except httpx.HTTPError:
        return False
