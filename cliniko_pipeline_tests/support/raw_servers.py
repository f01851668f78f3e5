"""A server on raw sockets that violates HTTP."""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from cliniko_pipeline_tests.support.waiting import LIMIT_SECONDS

Behaviour = Callable[[socket.socket], None]


class RawServer:
    """A server that handles each connection by the next behaviour of its script. The last behaviour is repeated.

    A behaviour starts when the first request of its connection has arrived. `requests` has the received heads.
    """

    def __init__(self, *script: Behaviour) -> None:
        self._script = list(script)
        self._lock = threading.Lock()
        self.connections = 0
        self._accepted: list[socket.socket] = []
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"http://{self.host}/v1"
        self._threads = [threading.Thread(target=self._listen, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._accepted:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LIMIT_SECONDS)

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._accepted.append(connection)
                behaviour = self._script.pop(0) if len(self._script) > 1 else self._script[0]
            thread = threading.Thread(target=self._serve, args=(connection, behaviour), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, behaviour: Behaviour) -> None:
        connection.settimeout(LIMIT_SECONDS)
        with connection, suppress(OSError):
            if request := received(connection):
                with self._lock:
                    self.requests.append(request)
                behaviour(connection)


def received(connection: socket.socket) -> bytes:
    """Return the head of a request, or no bytes if the client has closed the connection."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        if not (more := connection.recv(65536)):
            return b""
        head += more
    return head


def answer(body: bytes = b"", *headers: str, status: str = "200 OK") -> bytes:
    head = "".join(f"{header}\r\n" for header in (*headers, f"Content-Length: {len(body)}"))
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def sending(data: bytes) -> Behaviour:
    """Return a behaviour that sends `data` and closes the connection."""
    return lambda connection: connection.sendall(data)


def silent(connection: socket.socket) -> None:
    """Send nothing until the client closes the connection."""
    connection.recv(1)


def trickling(connection: socket.socket) -> None:
    """Send one byte of the body at a time until the client closes the connection."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    connection.settimeout(0.02)
    for _ in range(round(LIMIT_SECONDS / 0.02)):
        connection.sendall(b" ")
        with suppress(TimeoutError):
            connection.recv(1)
            return


def reset(connection: socket.socket) -> None:
    """Make the connection end with a reset instead of an orderly close."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
