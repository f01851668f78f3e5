"""The client against a real socket that misbehaves as no well-made server would."""

import json
import logging
import socket
import struct
import threading
import time

import httpx
import pytest

from cliniko_pipeline.cliniko import PATIENTS, ClinikoClient
from cliniko_pipeline.cliniko import client as client_module
from cliniko_pipeline.errors import ClinikoUnavailableError
from cliniko_pipeline_tests.budgets import SlidingWindowBudget

KEY = "MS0xLVNFQ1JFVA-au4"
RECORD = {"id": "1", "created_at": "2024-01-01T00:00:00Z", "updated_at": "2024-01-01T00:00:00Z"}
BODY = json.dumps({"patients": [RECORD], "total_entries": 1, "links": {}}).encode()


def whole(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY))


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silent_end(connection):
    pass


def reset_in_the_middle(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY[:20]))
    time.sleep(0.05)
    reset(connection)


def truncated(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY[:20]))


def truncated_without_a_length(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + BODY[:-5])


def truncated_chunk(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s" % (len(BODY), BODY[:20]))


def hanging(connection):
    time.sleep(0.6)


def hanging_in_the_middle(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY[:20]))
    time.sleep(0.6)


def no_gzip(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY))


def no_http(connection):
    connection.sendall(b"220 mail.example ESMTP\r\n")


class Server:
    """Answers each connection by the next behaviour of its script, the last one for ever."""

    def __init__(self, *script):
        self._script = list(script)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            behaviour = self._script.pop(0) if len(self._script) > 1 else self._script[0]
            with connection:
                try:
                    connection.recv(65536)
                    behaviour(connection)
                except OSError:
                    pass

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


def client_of(url, **options):
    return ClinikoClient(
        "surf-rehab", KEY, url, "cliniko_pipeline (ops@example.com)", SlidingWindowBudget(100),
        timeout=httpx.Timeout(0.2), sleep=lambda _seconds: None, **options,
    )  # fmt: skip


def crawl(*script, **options):
    server = Server(*script)
    try:
        with client_of(server.url, **options) as client:
            return [record.id for page in client.crawl(PATIENTS) for record in page.records]
    finally:
        server.close()


MISBEHAVIOURS = {
    reset: "broken connection",
    silent_end: "broken connection",
    reset_in_the_middle: "broken connection",
    truncated: "broken connection",
    truncated_without_a_length: "unreadable answer",
    truncated_chunk: "broken connection",
    hanging: "time-out",
    hanging_in_the_middle: "time-out",
    no_gzip: "unreadable answer",
    no_http: "broken connection",
}


@pytest.mark.parametrize("misbehaviour", MISBEHAVIOURS)
def test_a_connection_that_fails_once_is_tried_again(misbehaviour):
    assert crawl(misbehaviour, whole) == ["1"]


@pytest.mark.parametrize(("misbehaviour", "cause"), MISBEHAVIOURS.items())
def test_a_connection_that_fails_always_is_given_up_for_its_cause(misbehaviour, cause):
    with pytest.raises(ClinikoUnavailableError, match=f"2 attempts \\(2 {cause}s\\)") as caught:
        crawl(misbehaviour, max_attempts=2)
    assert caught.value.__context__ is None or not isinstance(caught.value.__context__, httpx.HTTPError)
    assert "127.0.0.1" not in str(caught.value)


def test_nobody_listening_is_a_failed_connection():
    server = Server(whole)
    server.close()
    with client_of(server.url, max_attempts=2) as client, pytest.raises(ClinikoUnavailableError, match="2 failed conn"):
        client.validate()


def test_an_answer_that_trickles_is_cut_off(monkeypatch):
    monkeypatch.setattr(client_module, "LONGEST_EXCHANGE_SECONDS", 0.3)

    def trickling(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        for _ in range(100):
            connection.sendall(b" ")
            time.sleep(0.05)

    started = time.monotonic()
    with pytest.raises(ClinikoUnavailableError, match="1 time-out"):
        crawl(trickling, max_attempts=1)
    assert time.monotonic() - started < 8


def test_a_redirect_is_not_followed():
    reached = []
    target = Server(lambda connection: reached.append(connection) or whole(connection))

    def redirecting(connection):
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % target.url.encode())

    with pytest.raises(Exception, match="redirect"):
        crawl(redirecting)
    target.close()
    assert reached == []


def test_the_most_talkative_logging_does_not_tell_the_key(caplog):
    caplog.set_level(logging.DEBUG)
    assert crawl(truncated, whole) == ["1"]
    assert "httpcore" in {record.name.partition(".")[0] for record in caplog.records}
    assert KEY not in caplog.text
    assert httpx.BasicAuth(KEY, "")._auth_header.removeprefix("Basic ") not in caplog.text
