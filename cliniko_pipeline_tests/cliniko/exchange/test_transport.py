"""Tests of the transport, which is libcurl behind httpx's interface, over real sockets."""

import gzip
import json
import logging
import os
import signal
import socket
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cliniko_pipeline.cliniko.exchange.transport import BodyTooLargeError, CurlTransport, Limits
from cliniko_pipeline.daemon_threads import DaemonThreads
from cliniko_pipeline_tests.support.raw_servers import (
    RawServer,
    answer,
    received,
    reset,
    sending,
    silent,
    trickling,
)
from cliniko_pipeline_tests.support.waiting import LIMIT_SECONDS, wait_until

SECRET = "c2VjcmV0"
BODY = json.dumps({"patients": [{"id": str(n), "name": "Zoë \U0001f600 \u0000"} for n in range(3000)]}).encode()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[..., RawServer]]:
    with ExitStack() as servers:
        yield lambda *script: servers.enter_context(RawServer(*script))


@pytest.fixture
def opened() -> Iterator[Callable[..., CurlTransport]]:
    """Yield a function that opens transports. They are closed at the end of the test."""
    with ExitStack() as transports:
        yield lambda **limits: transports.enter_context(CurlTransport(Limits(**limits)))


@pytest.fixture
def transport(opened) -> CurlTransport:
    return opened()


def get(transport: CurlTransport, url: str) -> httpx.Response:
    """Send a request as the client does."""
    headers = {"Accept": "application/json", "User-Agent": "tests", "Authorization": f"Basic {SECRET}"}
    return transport.handle_request(httpx.Request("GET", f"{url}?q[]=name:SECRET", headers=headers))


def assert_fails(transport: CurlTransport, url: str, *kinds: type[httpx.RequestError]) -> None:
    """Assert that the request raises exactly this type of error, and that the error reveals nothing of the request."""
    with pytest.raises(kinds) as caught:
        get(transport, url)
    assert type(caught.value) in kinds
    for secret in (SECRET, "SECRET", "127.0.0.1", url.rpartition("/")[2]):
        assert secret not in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert caught.value.__cause__ is None


def test_answer_keeps_status_and_headers_and_redirects_nobody(transport, serve) -> None:
    elsewhere = serve(sending(answer(b"{}")))
    headers = (
        "Date: Tue, 14 Nov 2023 22:13:20 GMT", "X-RateLimit-Reset:1700000000", "Retry-After:  7 ", "X-Twice: one",
        "X-Twice: two", "X-Empty:", f"Location: {elsewhere.url}",
    )  # fmt: skip
    response = get(transport, serve(sending(answer(b"", *headers, status="302 Found"))).url)
    assert (response.status_code, response.content, elsewhere.connections) == (302, b"", 0)
    assert response.headers["date"] == "Tue, 14 Nov 2023 22:13:20 GMT"
    assert (response.headers["X-RateLimit-Reset"], response.headers["retry-after"]) == ("1700000000", "7")
    assert response.headers.get_list("x-twice") == ["one", "two"]
    assert response.headers["x-empty"] == ""


def test_request_has_no_other_headers_and_nothing_is_logged(transport, serve, caplog, capfd) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve(sending(answer(b"{}")))
    get(transport, server.url)
    (sent,) = server.requests
    first, *lines = sent.decode().removesuffix("\r\n\r\n").split("\r\n")
    assert first in {"GET /v1?q[]=name:SECRET HTTP/1.1", "GET /v1?q%5B%5D=name:SECRET HTTP/1.1"}
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert sorted(headers) == ["accept", "accept-encoding", "authorization", "host", "user-agent"]
    assert headers["authorization"] == f"Basic {SECRET}"
    assert "gzip" in headers["accept-encoding"]
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_headers_of_an_interim_answer_are_dropped(transport, serve) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\nDate: never\r\n\r\n"
    response = get(transport, serve(sending(interim + answer(b"{}", "X-Real: yes"))).url)
    assert (response.status_code, response.content) == (200, b"{}")
    assert set(response.headers) == {"x-real", "content-length"}


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        answer(BODY),
        chunked(BODY, 1000),
        b"HTTP/1.1 200 OK\r\n\r\n" + BODY,
        answer(gzip.compress(BODY), "Content-Encoding: gzip"),
    ],
    ids=["length", "chunked", "until the end", "gzip"],
)
def test_body_is_complete_and_unpacked(transport, serve, data) -> None:
    response = get(transport, serve(sending(data)).url)
    assert response.content == BODY
    assert "content-encoding" not in response.headers
    assert response.headers.get("content-length") in {None, str(len(BODY))}
    assert response.json() == json.loads(BODY)


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (sending(answer(BODY)[:-1]), httpx.ReadError),
        (sending(chunked(BODY, 1000)[:-5]), httpx.ReadError),
        (reset, httpx.ReadError),
        (sending(b""), httpx.ReadError),
        (sending(b"220 mail.example ESMTP\r\n"), httpx.UnsupportedProtocol),
        (sending(answer(BODY, "Content-Encoding: gzip")), httpx.DecodingError),
    ],
    ids=["one byte missing", "no last chunk", "reset", "nothing", "another protocol", "no gzip"],
)
def test_incomplete_answer_is_an_error_of_its_kind(transport, serve, behaviour, kind) -> None:
    assert_fails(transport, serve(behaviour).url, kind)


@pytest.mark.parametrize("is_packed", [False, True])
def test_body_limit_counts_unpacked_bytes(opened, serve, is_packed) -> None:
    body = b"x" * 3_000_000
    sent = answer(gzip.compress(body), "Content-Encoding: gzip") if is_packed else answer(body)
    assert len(sent) < 5000 or not is_packed
    url = serve(sending(sent)).url
    assert len(get(opened(body_bytes=len(body)), url).content) == len(body)
    assert_fails(opened(body_bytes=len(body) - 1), url, BodyTooLargeError)
    assert issubclass(BodyTooLargeError, httpx.DecodingError)


@pytest.mark.parametrize(("behaviour", "limit"), [(silent, {"silent_seconds": 1}), (trickling, {"total_seconds": 0.2})])
def test_each_limit_of_time_ends_an_exchange(opened, serve, behaviour, limit) -> None:
    """The other time limit cannot end the exchange: one server waits for the client, and the other is never silent."""
    transport = opened(**{"silent_seconds": 3600, "total_seconds": 3600} | limit)
    assert_fails(transport, serve(behaviour).url, httpx.ReadTimeout)


def test_unreachable_host_is_a_connect_error(transport, serve) -> None:
    server = serve(silent)
    server.close()
    assert_fails(transport, server.url, httpx.ConnectError)
    assert_fails(transport, "http://nowhere.invalid/v1", httpx.ConnectError)


def test_untrusted_certificate_is_refused(transport, tmp_path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = tmp_path / "server.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    def request_received(listener: ssl.SSLSocket) -> bytes:
        with suppress(OSError), listener.accept()[0] as connection:
            return connection.recv(1000)
        return b""

    with (
        socket.create_server(("127.0.0.1", 0)) as plain,
        context.wrap_socket(plain, server_side=True) as listener,
        ThreadPoolExecutor(1) as pool,
    ):
        request = pool.submit(request_received, listener)
        assert_fails(transport, f"https://localhost:{listener.getsockname()[1]}/v1", httpx.ConnectError)
        assert request.result(LIMIT_SECONDS) == b""


def test_connection_closed_by_the_server_is_replaced(transport, serve) -> None:
    server = serve(sending(answer(b"{}")))
    assert [get(transport, server.url).status_code for _ in range(3)] == [200] * 3
    assert server.connections == 3


def test_each_thread_gets_its_own_answers(transport, serve) -> None:
    def echo(connection: socket.socket) -> None:
        for number in range(10):
            if number:
                received(connection)
            connection.sendall(answer(f"{connection.getpeername()[1]} {number}".encode() * 1000))

    server, all_started = serve(echo), threading.Barrier(8)

    def work(_number: int) -> list[bytes]:
        all_started.wait(LIMIT_SECONDS)
        return [get(transport, server.url).content for _ in range(10)]

    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(work, range(8)))
    assert server.connections == 8
    for contents in bodies:
        (port,) = {content.split()[0] for content in contents}
        assert contents == [f"{port.decode()} {number}".encode() * 1000 for number in range(10)]
    assert len({contents[0] for contents in bodies}) == 8


def test_closing_ends_requests_of_all_threads(opened, serve) -> None:
    """Some servers are silent, and one has begun its response. The time limits are too long to end the requests."""

    def begin_answer(connection: socket.socket) -> None:
        connection.sendall(answer(BODY)[:2000])
        silent(connection)

    server = serve(begin_answer, silent)
    transport = opened(silent_seconds=3600, total_seconds=3600)
    threads = DaemonThreads(3, "test-request")
    pending: list[Future[httpx.Response]] = [threads.submit(lambda: get(transport, server.url)) for _ in range(3)]
    wait_until(lambda: len(server.requests) == 3, lambda: f"{len(server.requests)} of 3 requests arrived")
    transport.close()
    transport.close()
    assert [type(future.exception(LIMIT_SECONDS)) for future in pending] == [httpx.ReadError] * 3
    threads.close()


@pytest.mark.parametrize(
    "interrupt",
    [lambda: os.kill(os.getpid(), signal.SIGINT), lambda: signal.raise_signal(signal.SIGINT)],
    ids=["to the process", "to another thread"],
)
def test_interruption_does_not_wait_for_the_answer(opened, serve, interrupt) -> None:
    """The server never responds. The thread that sends for the main thread ends when the transport is closed."""
    server = serve(silent)
    transport = opened(silent_seconds=3600, total_seconds=3600)

    def interrupt_request() -> None:
        wait_until(lambda: server.requests, "the request did not arrive")
        interrupt()

    interrupter = threading.Thread(target=interrupt_request, daemon=True)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        get(transport, server.url)
    interrupter.join(LIMIT_SECONDS)
    senders = [thread for thread in threading.enumerate() if thread.name.startswith("cliniko-request")]
    assert senders
    transport.close()
    server.close()
    wait_until(lambda: not any(thread.is_alive() for thread in senders), "the sending thread did not end")


def test_proxy_of_the_environment_is_used_if_wanted(opened, serve, monkeypatch) -> None:
    proxy, server = serve(sending(answer(b"from the proxy"))), serve(sending(answer(b"from the server")))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://{proxy.host}")
    assert get(opened(), server.url).content == b"from the server"
    assert proxy.connections == 0
    assert get(opened(), "http://cliniko.example/v1").content == b"from the proxy"
    assert proxy.requests[0].startswith(b"GET http://cliniko.example/v1?")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert get(opened(), server.url).content == b"from the server"


def test_refusing_proxy_sees_neither_key_nor_query(opened, serve, monkeypatch) -> None:
    proxy = serve(sending(answer(b"", status="407 Proxy Authentication Required")))
    monkeypatch.setenv("https_proxy", f"http://{proxy.host}")
    # Versions of libcurl raise different errors.
    assert_fails(opened(), "https://cliniko.example/v1", httpx.ReadError, httpx.ConnectError)
    assert proxy.requests[0].startswith(b"CONNECT cliniko.example:443 HTTP/1.1\r\n")
    assert SECRET.encode() not in b"".join(proxy.requests)
    assert b"q[]" not in b"".join(proxy.requests)


@pytest.mark.parametrize("name", ["https_proxy", "ALL_PROXY"])
def test_unreachable_proxy_is_a_connect_error(opened, serve, monkeypatch, name) -> None:
    proxy = serve(silent)
    proxy.close()
    monkeypatch.setenv(name, f"http://{proxy.host}")
    assert_fails(opened(), "https://cliniko.example/v1", httpx.ConnectError)
