"""The client over real sockets: broken connections, proxies and logs."""

import json
import logging

import httpx
import pytest

from cliniko_pipeline.cliniko.client import ClinikoClient
from cliniko_pipeline.cliniko.exchange.sender import Access, RequestOptions
from cliniko_pipeline.cliniko.exchange.transport import CurlTransport, Limits
from cliniko_pipeline.cliniko.records import PATIENTS
from cliniko_pipeline.errors import ClinikoUnavailableError
from cliniko_pipeline_tests.support.budgets import SlidingWindowBudget
from cliniko_pipeline_tests.support.raw_servers import RawServer, answer, sending, silent

KEY = "MS0xLVNFQ1JFVA-au4"
RECORD = {"id": "1", "created_at": "2024-01-01T00:00:00Z", "updated_at": "2024-01-01T00:00:00Z"}
BODY = json.dumps({"patients": [RECORD], "total_entries": 1, "links": {}}).encode()
complete = sending(answer(BODY))
truncated = sending(answer(BODY)[:-5])


@pytest.fixture(autouse=True)
def no_proxy_exceptions(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def client_of(url, *, transport=None, **options):
    access = Access(KEY, url, "cliniko_pipeline (ops@example.com)")
    options = RequestOptions(sleep=lambda _seconds: None, **options)
    return ClinikoClient("surf-rehab", access, SlidingWindowBudget(1000), transport=transport, options=options)


def crawl(*script, **options):
    with RawServer(*script) as server, client_of(server.url, **options) as client:
        return [record.id for page in client.crawl(PATIENTS) for record in page.records]


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        (truncated, "broken connection"),
        (sending(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + BODY[:-5]), "unreadable answer"),
        (sending(b"HTTP/1.1 200 OK\r\nDate: Tue"), "unreadable answer"),
        (silent, "time-out"),
    ],
    ids=["truncated", "truncated without a length", "truncated in a header", "silent"],
)
def test_failing_connection_is_given_up_with_its_cause(failure, cause):
    # The other failures end before any time limit.
    limits = Limits(total_seconds=0.2 if failure is silent else 60)
    with pytest.raises(ClinikoUnavailableError, match=f"2 attempts \\(2 {cause}s\\)") as caught:
        crawl(failure, max_attempts=2, transport=CurlTransport(limits))
    assert not isinstance(caught.value.__context__, httpx.HTTPError)
    assert "127.0.0.1" not in str(caught.value)


def test_loopback_is_reached_without_the_proxy(monkeypatch):
    with RawServer(complete) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
        assert crawl(complete) == ["1"]
        assert proxy.connections == 0


def test_other_hosts_are_reached_through_the_proxy(monkeypatch):
    with RawServer(complete) as proxy:
        monkeypatch.setenv("https_proxy", f"http://{proxy.host}")
        with (
            client_of("https://cliniko.example/v1", max_attempts=1) as client,
            pytest.raises(ClinikoUnavailableError),
        ):
            client.validate()
        request, _ = proxy.requests
    assert request.startswith(b"CONNECT cliniko.example:443 HTTP/1.1\r\n")
    assert b"uthorization" not in request


def test_debug_logs_do_not_hold_the_key(caplog):
    caplog.set_level(logging.DEBUG)
    assert crawl(truncated, complete) == ["1"]
    assert KEY not in caplog.text
    assert httpx.BasicAuth(KEY, "")._auth_header.removeprefix("Basic ") not in caplog.text
