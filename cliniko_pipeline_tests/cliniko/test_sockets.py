"""The client against a real socket that misbehaves as no well-made server would."""

import gzip
import json
import logging
import time

import httpx
import pytest

from cliniko_pipeline.cliniko import PATIENTS, ClinikoClient
from cliniko_pipeline.cliniko.transport import Limits
from cliniko_pipeline.errors import ClinikoUnavailableError, ForeignLinkError
from cliniko_pipeline_tests.support.budgets import SlidingWindowBudget
from cliniko_pipeline_tests.support.raw_servers import RawServer, reset

KEY = "MS0xLVNFQ1JFVA-au4"
RECORD = {"id": "1", "created_at": "2024-01-01T00:00:00Z", "updated_at": "2024-01-01T00:00:00Z"}
BODY = json.dumps({"patients": [RECORD], "total_entries": 1, "links": {}}).encode()


def whole(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY))


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


def truncated_gzip(connection):
    packed = gzip.compress(BODY)[:-20]
    connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s" % (len(packed), packed)
    )


def truncated_in_a_header(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nDate: Tue")


def no_http(connection):
    connection.sendall(b"220 mail.example ESMTP\r\n")


def client_of(url, *, limits=Limits(whole_seconds=0.3), **options):  # noqa: B008 -- it is frozen
    return ClinikoClient(
        "surf-rehab", KEY, url, "cliniko_pipeline (ops@example.com)", SlidingWindowBudget(100),
        limits=limits, sleep=lambda _seconds: None, **options,
    )  # fmt: skip


def crawl(*script, **options):
    with RawServer(*script) as server, client_of(server.url, **options) as client:
        return [record.id for page in client.crawl(PATIENTS) for record in page.records]


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
    truncated_gzip: "unreadable answer",
    truncated_in_a_header: "unreadable answer",
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
    with RawServer(whole) as server:
        pass
    with client_of(server.url, max_attempts=2) as client, pytest.raises(ClinikoUnavailableError, match="2 failed conn"):
        client.validate()


def test_an_answer_that_trickles_is_cut_off():
    def trickling(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        for _ in range(100):
            connection.sendall(b" ")
            time.sleep(0.05)

    started = time.monotonic()
    with pytest.raises(ClinikoUnavailableError, match="1 time-out"):
        crawl(trickling, max_attempts=1)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_body_without_end_is_given_up(is_packed):
    body = json.dumps({"patients": [], "total_entries": 0, "links": {}, "padding": "x" * 2_000_000}).encode()
    sent, encoding = (gzip.compress(body), b"gzip") if is_packed else (body, b"identity")

    def big(connection):
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n%s" % (encoding, len(sent), sent)
        )

    def read(largest):
        return crawl(big, max_attempts=2, limits=Limits(whole_seconds=10, body_bytes=largest))

    assert read(len(body)) == []
    with pytest.raises(ClinikoUnavailableError, match="2 unreadable answers"):
        read(len(body) - 1)


def test_a_redirect_is_not_followed():
    with RawServer(whole) as target:

        def redirecting(connection):
            connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % target.url.encode())

        with pytest.raises(ForeignLinkError, match="redirect"):
            crawl(redirecting)
        assert target.connections == 0


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_of_the_environment_is_not_for_loopback(monkeypatch, name):
    for no_proxy in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(no_proxy, raising=False)
    with RawServer(whole) as proxy:
        monkeypatch.setenv(name, f"http://{proxy.host}")
        assert crawl(whole) == ["1"]
        assert proxy.connections == 0


def test_a_proxy_of_the_environment_is_for_the_world_outside(monkeypatch):
    for no_proxy in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(no_proxy, raising=False)
    with RawServer(whole) as proxy:
        monkeypatch.setenv("https_proxy", f"http://{proxy.host}")
        with (
            client_of("https://cliniko.example/v1", max_attempts=1) as client,
            pytest.raises(ClinikoUnavailableError),
        ):
            client.validate()
        (request,) = proxy.requests
    assert request.startswith(b"CONNECT cliniko.example:443 HTTP/1.1\r\n")
    assert b"uthorization" not in request


def test_the_most_talkative_logging_does_not_tell_the_key(caplog):
    caplog.set_level(logging.DEBUG)
    assert crawl(truncated, whole) == ["1"]
    assert KEY not in caplog.text
    assert httpx.BasicAuth(KEY, "")._auth_header.removeprefix("Basic ") not in caplog.text
