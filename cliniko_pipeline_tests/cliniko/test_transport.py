"""libcurl behind httpx's interface, over real sockets."""

import gzip
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cliniko_pipeline.cliniko.daemon_threads import DaemonThreads
from cliniko_pipeline.cliniko.transport import BodyTooLargeError, CurlTransport, Limits
from cliniko_pipeline_tests.support.raw_servers import Behaviour, RawServer, answer, received, reset, sending

SECRET = "c2VjcmV0"
LIMITS = Limits(connect_seconds=2, silent_seconds=30, whole_seconds=5)
PROXIES = ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[..., RawServer]]:
    servers: list[RawServer] = []

    def started(*script: Behaviour) -> RawServer:
        servers.append(RawServer(*script))
        return servers[-1]

    yield started
    for server in servers:
        server.close()


@pytest.fixture
def transport() -> Iterator[CurlTransport]:
    opened = CurlTransport(LIMITS, uses_proxies=False)
    yield opened
    opened.close()


def get(transport: CurlTransport, url: str) -> httpx.Response:
    """With a request as the client makes it."""
    headers = {"Accept": "application/json", "User-Agent": "tests", "Authorization": f"Basic {SECRET}"}
    return transport.handle_request(httpx.Request("GET", f"{url}?q[]=name:SECRET", headers=headers))


def in_thread(work: Callable[[], object]) -> "Future[object]":
    future: Future[object] = Future()

    def do() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001
            future.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    return future


def fails(transport: CurlTransport, url: str, *kinds: type[httpx.RequestError]) -> None:
    """With exactly that error, or one of those, which tells nothing of the request."""
    with pytest.raises(kinds) as caught:
        get(transport, url)
    assert type(caught.value) in kinds
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    for secret in (SECRET, "SECRET", "127.0.0.1", url.rpartition("/")[2]):
        assert secret not in str(caught.value)
    assert SECRET not in told
    assert caught.value.__cause__ is None


# --- What is sent, and what comes -------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "302 Found", "401 Unauthorized", "429 Slow", "503 X"])
def test_the_status_and_the_headers_come_as_they_were_sent(transport, serve, status) -> None:
    headers = (
        "Date: Tue, 14 Nov 2023 22:13:20 GMT", "X-RateLimit-Reset:1700000000", "Retry-After:  7 ", "X-Twice: one",
        "X-Twice: two", "X-Empty:", "Location: http://127.0.0.1:1/elsewhere",
    )  # fmt: skip
    response = get(transport, serve(sending(answer(b"", *headers, status=status))).url)
    assert response.status_code == int(status[:3])
    assert response.headers["date"] == "Tue, 14 Nov 2023 22:13:20 GMT"
    assert (response.headers["X-RateLimit-Reset"], response.headers["retry-after"]) == ("1700000000", "7")
    assert response.headers.get_list("x-twice") == ["one", "two"]
    assert response.headers["x-empty"] == ""
    assert response.content == b""


def test_the_request_is_what_was_asked_for_and_no_more(transport, serve) -> None:
    server = serve(sending(answer(b"{}")))
    get(transport, server.url)
    (sent,) = server.requests
    first, *headers = sent.decode().removesuffix("\r\n\r\n").split("\r\n")
    assert first in {"GET /v1?q[]=name:SECRET HTTP/1.1", "GET /v1?q%5B%5D=name:SECRET HTTP/1.1"}
    names = [header.partition(":")[0].lower() for header in headers]
    assert sorted(names) == ["accept", "accept-encoding", "authorization", "host", "user-agent"]
    assert f"authorization: basic {SECRET}".lower() in [header.lower() for header in headers]
    assert "gzip" in next(header for header in headers if header.lower().startswith("accept-encoding"))


def test_what_an_interim_answer_said_is_no_part_of_the_answer(transport, serve) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\nDate: never\r\n\r\n"
    response = get(transport, serve(sending(interim + answer(b"{}", "X-Real: yes"))).url)
    assert (response.status_code, response.content) == (200, b"{}")
    assert "link" not in response.headers
    assert "date" not in response.headers
    assert response.headers["x-real"] == "yes"


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


BODY = json.dumps({"patients": [{"id": str(n), "name": "Zoë \U0001f600 \u0000"} for n in range(3000)]}).encode()


@pytest.mark.parametrize(
    "whole",
    [
        answer(BODY),
        chunked(BODY, 1000),
        b"HTTP/1.1 200 OK\r\n\r\n" + BODY,
        answer(gzip.compress(BODY), "Content-Encoding: gzip"),
        chunked(BODY, len(BODY)),
    ],
    ids=["length", "chunked", "until the end", "gzip", "one chunk"],
)
def test_a_body_comes_whole_and_unpacked(transport, serve, whole) -> None:
    response = get(transport, serve(sending(whole)).url)
    assert response.content == BODY
    assert "content-encoding" not in response.headers
    assert response.headers.get("content-length") in {None, str(len(BODY))}
    assert response.json() == json.loads(BODY)


def test_a_redirect_is_not_followed(transport, serve) -> None:
    elsewhere = serve(sending(answer(b"{}")))
    response = get(transport, serve(sending(answer(b"", f"Location: {elsewhere.url}", status="302 Found"))).url)
    assert response.status_code == 302
    assert elsewhere.connections == 0


# --- What goes wrong --------------------------------------------------------------------------------------


def broken_in_the_middle(connection: socket.socket) -> None:
    connection.sendall(answer(BODY)[:2000])
    time.sleep(0.05)
    reset(connection)


def nothing(_connection: socket.socket) -> None:
    pass


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (sending(answer(BODY)[:-1]), httpx.ReadError),
        (sending(answer(BODY)[:60]), httpx.ReadError),
        (sending(chunked(BODY, 1000)[:-5]), httpx.ReadError),
        (sending(chunked(BODY, 1000)[:2500]), httpx.ReadError),
        (reset, httpx.ReadError),
        (nothing, httpx.ReadError),
        (broken_in_the_middle, httpx.ReadError),
        (sending(b"220 mail.example ESMTP\r\n"), httpx.UnsupportedProtocol),
        (sending(b"HTTP/1.1 abc\r\n\r\n"), httpx.UnsupportedProtocol),
        (sending(answer(BODY, "Content-Encoding: gzip")), httpx.DecodingError),
    ],
    ids=[
        "one byte missing", "cut off", "no last chunk", "in a chunk", "reset", "nothing",
        "reset in the middle", "another protocol", "no status", "no gzip",
    ],
)  # fmt: skip
def test_what_is_no_whole_answer_is_an_error_of_its_kind(transport, serve, behaviour, kind) -> None:
    fails(transport, serve(behaviour).url, kind)


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_body_beyond_the_limit_is_not_taken_however_small_it_was_on_its_way(serve, is_packed) -> None:
    body = b"x" * 3_000_000
    sent = answer(gzip.compress(body), "Content-Encoding: gzip") if is_packed else answer(body)
    assert len(sent) < 5000 or not is_packed
    url = serve(sending(sent)).url
    for largest, is_taken in ((len(body), True), (len(body) - 1, False), (10, False)):
        limited = CurlTransport(Limits(body_bytes=largest), uses_proxies=False)
        if is_taken:
            assert len(get(limited, url).content) == len(body)
        else:
            fails(limited, url, BodyTooLargeError)
        limited.close()
    assert issubclass(BodyTooLargeError, httpx.DecodingError)


def test_a_body_that_never_ends_is_cut_off_at_the_limit(serve) -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 100_000)

    limited = CurlTransport(Limits(body_bytes=5_000_000), uses_proxies=False)
    fails(limited, serve(endless).url, BodyTooLargeError)
    limited.close()


def test_silence_ends_an_exchange_though_the_whole_of_it_may_take_long(serve) -> None:
    server = serve(lambda _connection: server.ended.wait(10))
    silent = CurlTransport(Limits(silent_seconds=1, whole_seconds=60), uses_proxies=False)
    began = time.monotonic()
    fails(silent, server.url, httpx.ReadTimeout)
    assert time.monotonic() - began < 5
    silent.close()


def test_an_answer_that_trickles_ends_with_the_time_for_the_whole(serve) -> None:
    def trickling(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            connection.sendall(b" ")
            time.sleep(0.02)

    slow = CurlTransport(Limits(silent_seconds=1, whole_seconds=0.4), uses_proxies=False)
    began = time.monotonic()
    fails(slow, serve(trickling).url, httpx.ReadTimeout)
    assert 0.35 < time.monotonic() - began < 3
    slow.close()


def test_nobody_listening_is_a_failed_connection(transport, serve) -> None:
    server = serve(nothing)
    server.close()
    fails(transport, server.url, httpx.ConnectError)


def test_a_host_without_an_address_is_a_failed_connection(transport) -> None:
    fails(transport, "http://nowhere.invalid/v1", httpx.ConnectError)


def test_a_certificate_that_nobody_vouches_for_is_not_trusted(transport, tmp_path) -> None:
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
    seen = []

    def serve_one(listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
            with context.wrap_socket(connection, server_side=True) as secure:
                seen.append(secure.recv(1000))
        except OSError:
            pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve_one, args=(listener,), daemon=True)
        thread.start()
        fails(transport, f"https://localhost:{listener.getsockname()[1]}/v1", httpx.ConnectError)
        thread.join(5)
    assert [one for one in seen if one] == []


# --- Connections ------------------------------------------------------------------------------------------


def keeping(connection: socket.socket) -> None:
    connection.sendall(answer(b"{}"))
    while received(connection):
        connection.sendall(answer(b"{}"))


def test_a_connection_is_used_again_by_the_thread_that_opened_it(transport, serve) -> None:
    server = serve(keeping)
    for _ in range(5):
        get(transport, server.url)
    assert server.connections == 1
    in_thread(lambda: [get(transport, server.url) for _ in range(5)]).result(5)
    assert server.connections == 2


def test_a_connection_that_the_server_closed_meanwhile_is_opened_anew(transport, serve) -> None:
    server = serve(sending(answer(b"{}")))
    assert [get(transport, server.url).status_code for _ in range(3)] == [200] * 3
    assert server.connections == 3


def test_many_threads_get_each_its_own_answer(transport, serve) -> None:
    def echoing(connection: socket.socket) -> None:
        for number in range(20):
            if number:
                server.requests.append(received(connection))
            connection.sendall(answer(f"{connection.getpeername()[1]} {number}".encode() * 1000))

    server = serve(echoing)

    def work(_number: int) -> list[bytes]:
        return [get(transport, server.url).content for _ in range(20)]

    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(work, range(16)))
    assert server.connections == 16
    for contents in got:
        # Each thread has kept to its own connection.
        (port,) = {content.split()[0] for content in contents}
        assert contents == [f"{port.decode()} {number}".encode() * 1000 for number in range(20)]
    assert len({contents[0] for contents in got}) == 16


# --- Ending -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_answering", [False, True])
def test_closing_ends_what_is_under_way_in_every_thread(serve, is_answering) -> None:
    def standing(connection: socket.socket) -> None:
        if is_answering:
            connection.sendall(answer(BODY)[:2000])
        server.ended.wait(20)

    server = serve(standing)
    transport = CurlTransport(Limits(), uses_proxies=False)
    waiting = [in_thread(lambda: get(transport, server.url)) for _ in range(3)]
    _until(lambda: len(server.requests) == 3)
    began = time.monotonic()
    transport.close()
    transport.close()
    for one in waiting:
        assert isinstance(one.exception(5), httpx.ReadError)
    assert time.monotonic() - began < 2


def to_the_thread_that_waits() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def to_another_thread() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("interruption", [to_the_thread_that_waits, to_another_thread])
def test_an_interruption_reaches_the_main_thread_at_once_and_closing_ends_the_request_it_waited_for(
    serve, interruption
) -> None:
    server = serve(lambda _connection: server.ended.wait(20))
    transport = CurlTransport(Limits(), uses_proxies=False)
    interrupted: list[float] = []

    def interrupt() -> None:
        _until(lambda: len(server.requests) == 1)
        interrupted.append(time.monotonic())
        interruption()

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        get(transport, server.url)
    assert time.monotonic() - interrupted[0] < 0.5
    (courier,) = (each for each in threading.enumerate() if each.name.startswith("cliniko-request"))
    transport.close()
    courier.join(2)
    assert not courier.is_alive()


def test_a_process_with_requests_under_way_ends_at_once_and_well(serve, tmp_path) -> None:
    server = serve(lambda _connection: server.ended.wait(20))
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import sys, threading, time
            import httpx
            from cliniko_pipeline.cliniko.daemon_threads import DaemonThreads
            from cliniko_pipeline.cliniko.transport import CurlTransport, Limits
            transport = CurlTransport(Limits(), uses_proxies=False)
            threads = DaemonThreads(4, "page")
            for _ in range(4):
                threads.submit(lambda: transport.handle_request(httpx.Request("GET", sys.argv[1])))
            time.sleep(0.3)
            print("ends", flush=True)
            """
        )
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, str(program), server.url], cwd=root, env={"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ends\n"
    began = time.monotonic()
    _, told = process.communicate(timeout=10)
    assert (process.returncode, told) == (0, "")
    assert time.monotonic() - began < 2
    assert len(server.requests) == 4


def test_threads_that_were_closed_take_no_more_work() -> None:
    threads = DaemonThreads(2, "test-threads")
    assert [threads.submit(lambda number=number: number).result(5) for number in range(5)] == list(range(5))
    threads.close()
    threads.close()
    with pytest.raises(RuntimeError, match="closed"):
        threads.submit(lambda: None)
    _until(lambda: not [each for each in threading.enumerate() if each.name.startswith("test-threads")])


def test_threads_raise_what_was_raised_where_it_is_waited_for() -> None:
    threads = DaemonThreads(1, "test-threads")
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 // 0).result(5)
    assert threads.submit(lambda: "still there").result(5) == "still there"
    threads.close()


def test_work_that_was_not_begun_when_its_threads_were_closed_is_not_done() -> None:
    threads, go_on, done = DaemonThreads(1, "test-threads"), threading.Event(), []
    under_way = threads.submit(lambda: go_on.wait(5))
    waiting = [threads.submit(lambda: done.append(1)) for _ in range(3)]
    threads.close()
    go_on.set()
    assert under_way.result(5)
    _until(lambda: all(one.done() for one in waiting))
    assert all(one.cancelled() for one in waiting)
    assert done == []


# --- Proxies ----------------------------------------------------------------------------------------------


def test_a_proxy_of_the_environment_is_used_where_that_is_wanted(serve, monkeypatch) -> None:
    proxy = serve(sending(answer(b"from the proxy")))
    monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
    transport = CurlTransport(LIMITS)
    assert get(transport, "http://cliniko.example/v1").content == b"from the proxy"
    assert proxy.requests[0].startswith(b"GET http://cliniko.example/v1?")
    transport.close()


def test_a_proxy_of_the_environment_is_not_used_where_that_is_not_wanted(transport, serve, monkeypatch) -> None:
    proxy, server = serve(sending(answer(b"from the proxy"))), serve(sending(answer(b"from the server")))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://{proxy.host}")
    assert get(transport, server.url).content == b"from the server"
    assert proxy.connections == 0


def test_hosts_that_the_environment_excepts_are_not_asked_through_the_proxy(serve, monkeypatch) -> None:
    proxy, server = serve(sending(answer(b"from the proxy"))), serve(sending(answer(b"from the server")))
    monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    transport = CurlTransport(LIMITS)
    assert get(transport, server.url).content == b"from the server"
    transport.close()


def test_a_proxy_that_refuses_sees_neither_the_key_nor_the_path(serve, monkeypatch) -> None:
    proxy = serve(sending(answer(b"", status="407 Proxy Authentication Required")))
    monkeypatch.setenv("https_proxy", f"http://{proxy.host}")
    transport = CurlTransport(LIMITS)
    # The versions of libcurl do not agree.
    fails(transport, "https://cliniko.example/v1", httpx.ReadError, httpx.ConnectError)
    assert proxy.requests[0].startswith(b"CONNECT cliniko.example:443 HTTP/1.1\r\n")
    assert SECRET.encode() not in b"".join(proxy.requests)
    assert b"q[]" not in b"".join(proxy.requests)
    transport.close()


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
def test_a_proxy_that_is_not_there_is_a_failed_connection(serve, monkeypatch, name) -> None:
    gone = serve(nothing)
    gone.close()
    monkeypatch.setenv(name, f"http://{gone.host}")
    transport = CurlTransport(LIMITS)
    fails(transport, "https://cliniko.example/v1", httpx.ConnectError)
    transport.close()


def test_nothing_is_logged(transport, serve, caplog, capfd) -> None:
    caplog.set_level(logging.DEBUG)
    get(transport, serve(sending(answer(b"{}"))).url)
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)
