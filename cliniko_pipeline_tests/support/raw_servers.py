"""A server of raw sockets, which answers as no well-made server would."""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

Behaviour = Callable[[socket.socket], None]


class RawServer:
    """Treats each connection by the next behaviour of its script, the last one for ever; each in a thread of its own.

    A behaviour begins when the first request has come: `requests` holds what was received of each.
    """

    def __init__(self, *script: Behaviour) -> None:
        self._script = list(script)
        self._lock = threading.Lock()
        self.connections = 0
        self._accepted: list[socket.socket] = []
        self.requests: list[bytes] = []
        self.ended = threading.Event()
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
        self.ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._accepted:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

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
        connection.settimeout(10)
        with connection, suppress(OSError):
            if request := received(connection):
                with self._lock:
                    self.requests.append(request)
                behaviour(connection)


def received(connection: socket.socket) -> bytes:
    """The head of a request; nothing where the other side has closed the connection."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        if not (more := connection.recv(65536)):
            return b""
        head += more
    return head


def answer(body: bytes = b"", *headers: str, status: str = "200 OK") -> bytes:
    head = "".join(f"{header}\r\n" for header in (*headers, f"Content-Length: {len(body)}"))
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def sending(whole: bytes) -> Behaviour:
    """Sends that, and closes the connection."""
    return lambda connection: connection.sendall(whole)


def reset(connection: socket.socket) -> None:
    """Has the connection end with a reset instead of an orderly end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
