"""Tests of the client: requests, attempts and errors. Status 429 and real sockets have their own tests."""

import threading
from dataclasses import replace
from datetime import UTC, datetime

import httpx
import pytest

from cliniko_pipeline import errors
from cliniko_pipeline.cliniko.client import ClinikoClient
from cliniko_pipeline.cliniko.crawling.refusals import consequence
from cliniko_pipeline.cliniko.events import PageRead, Retrying
from cliniko_pipeline.cliniko.exchange.retry import MAX_REFUSED_ATTEMPTS
from cliniko_pipeline.cliniko.records import PATIENTS
from cliniko_pipeline_tests.support.budgets import SlidingWindowBudget
from cliniko_pipeline_tests.support.scripted_clients import (
    ACCESS,
    AGENT,
    API,
    KEY,
    NOW,
    RECORD,
    ScriptedClient,
    assert_reveals_no_secret,
    listing,
)
from cliniko_pipeline_tests.support.waiting import LIMIT_SECONDS


def test_crawl_reads_counts_and_reports_all_pages():
    scripted = ScriptedClient(then=lambda request: listing(request, total=250))
    pages = scripted.crawl()
    assert sorted(int(record.id) for page in pages for record in page.records) == list(range(1, 251))
    assert [(page.number, page.pages) for page in pages] == [(1, 3), (2, 3), (3, 3)]
    assert pages[0].started_at == datetime.fromtimestamp(NOW, UTC)
    assert scripted.events[-1] == PageRead("patients", 3, 3, 100, 250, budget_left=197)
    statistics = scripted.client.statistics
    assert (statistics.requests, statistics.pages, statistics.records, statistics.retries) == (3, 3, 250, 0)
    # The resumed crawl first reads records of the last clock second again, because the checkpoint does not list them.
    *_, third = scripted.crawl(checkpoint=pages[1].checkpoint)
    assert third.records == pages[2].records


def test_request_has_the_headers_that_cliniko_requires():
    scripted = ScriptedClient()
    scripted.crawl(changed_since=datetime(2024, 1, 1, tzinfo=UTC))
    (request,) = scripted.requests
    assert request.method == "GET"
    assert request.headers["Accept"] == "application/json"
    assert request.headers["User-Agent"] == AGENT
    assert request.headers["Authorization"] == httpx.BasicAuth(KEY, "")._auth_header
    assert request.url.params.get_list("q[]") == ["archived_at:*", "updated_at:>=2024-01-01T00:00:00Z"]


def test_rejected_record_does_not_cost_its_page():
    body = {"patients": [RECORD, {**RECORD, "id": None}, {**RECORD, "id": "3"}], "total_entries": 3, "links": {}}
    scripted = ScriptedClient(httpx.Response(200, json=body))
    (page,) = scripted.crawl()
    assert [record.id for record in page.records] == ["1", "3"]
    assert len(page.rejected) == 1
    assert scripted.client.statistics.records == 2


def test_counting_and_validating_request_one_record_each():
    scripted = ScriptedClient(then=lambda request: listing(request, total=5_000))
    assert scripted.client.total_entries(PATIENTS) == 5_000
    scripted.client.validate()
    assert len(scripted.requests) == 2
    for request in scripted.requests:
        assert request.url.path == "/v1/patients"
        assert request.url.params["per_page"] == "1"
        assert request.url.params.get_list("q[]") == ["archived_at:*"]


@pytest.mark.parametrize("max_in_flight", [1, 8])
def test_pages_in_flight_reach_their_limit_and_no_more(max_in_flight):
    """Events arrive one at a time."""
    lock, now, most, handled = threading.Lock(), [0], [0], [0]
    together = threading.Barrier(max_in_flight)

    def answer(request):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        if int(request.url.params["page"]) > 40 - max_in_flight:
            together.wait(LIMIT_SECONDS)
        with lock:
            now[0] -= 1
        return listing(request, total=4000)

    def handle(_event):
        handled[0] += 1
        assert handled[0] == 1
        handled[0] -= 1

    scripted = ScriptedClient(then=answer, max_pages_in_flight=max_in_flight, on_event=handle)
    with scripted.client:
        pages = scripted.crawl()
    assert sorted(int(record.id) for page in pages for record in page.records) == list(range(1, 4001))
    assert len(scripted.requests) == 40
    assert most[0] == max_in_flight


def test_failure_of_a_page_in_flight_is_raised_in_order():

    def answer(request):
        return httpx.Response(404) if request.url.params["page"] == "5" else listing(request, total=1000)

    scripted = ScriptedClient(then=answer, max_pages_in_flight=8)
    numbers = []
    with scripted.client, pytest.raises(errors.RequestRejectedError, match="patients, page 5"):
        numbers.extend(page.number for page in scripted.client.crawl(PATIENTS))
    # The other pages in flight are held back until a later page confirms them.
    assert numbers == [1]


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        (502, "answer 502"),
        (httpx.ReadTimeout, "time-out"),
        (httpx.ProxyError, "failed connection"),
        (httpx.ReadError, "broken connection"),
        (httpx.DecodingError, "unreadable answer"),
        (httpx.Response(204), "unreadable answer"),
    ],
)
def test_transient_failure_is_retried_after_a_wait(failure, cause):
    scripted = ScriptedClient(failure)
    (page,) = scripted.crawl()
    assert len(page.records) == 3
    assert scripted.events[0] == Retrying("patients, page 1", 1, scripted.waits[0], cause)
    statistics = scripted.client.statistics
    assert (statistics.requests, statistics.retries, statistics.seconds_waited) == (2, 1, sum(scripted.waits))


def test_error_after_all_attempts_lists_the_failures():
    scripted = ScriptedClient(httpx.ReadTimeout, 502, httpx.ConnectTimeout, 502, httpx.ReadTimeout, then=500)
    message = scripted.crawl_error(errors.ClinikoUnavailableError)
    assert message == (
        "Organization surf-rehab: patients, page 1: given up after 6 attempts (3 time-outs, 2 answers 502, "
        "1 answer 500): syncs are retried automatically; if the error persists, check whether Cliniko reports an "
        "outage, and whether this machine can reach the organization's API URL (DNS, firewall, proxy)"
    )
    # Four more requests find out whether Cliniko serves the list at all.
    assert len(scripted.requests) == 10
    assert len(scripted.waits) == 7


def test_every_request_error_of_httpx_is_transient():
    kinds, found = [httpx.RequestError], set()
    while kinds:
        kind = kinds.pop()
        found.add(kind)
        kinds.extend(kind.__subclasses__())
    assert len(found) > 10
    for kind in found:
        scripted = ScriptedClient(then=kind, max_attempts=2)
        assert "given up after 2 attempts" in scripted.crawl_error(errors.ClinikoUnavailableError)


@pytest.mark.parametrize(
    ("answer", "error", "hint"),
    [
        (401, errors.AuthenticationError, "organizations add"),
        (403, errors.PermissionDeniedError, "right"),
        (httpx.Response(403, html="<h1>SECRET</h1>"), errors.PermissionDeniedError, "CLINIKO_CONTACT_EMAIL"),
        (400, errors.RequestRejectedError, "answer 400"),
        (404, errors.RequestRejectedError, "API URL"),
        (httpx.Response(302, headers={"Location": "https://SECRET.example"}), errors.ForeignLinkError, "redirect"),
        (httpx.Response(200, json={"message": "SECRET"}), errors.UnexpectedResponseError, "patients"),
    ],
)
def test_permanent_failure_is_raised_with_its_remedy(answer, error, hint):
    scripted = ScriptedClient(answer)
    message = scripted.crawl_error(error)
    assert message.startswith("Organization surf-rehab: ")
    assert hint in message
    assert (len(scripted.requests), scripted.waits) == (1, [])
    with pytest.raises(error, match=r"^Organization surf-rehab: ") as caught:
        ScriptedClient(answer).client.validate()
    assert_reveals_no_secret(caught.value)


def test_refusal_after_an_accepted_request_is_retried_a_few_times():
    def answer(request):
        return listing(request, total=250)

    passing = ScriptedClient(answer, 401, 403, 403, then=answer)
    assert sum(len(page.records) for page in passing.crawl()) == 250
    assert len(passing.waits) == 3
    lasting = ScriptedClient(answer, then=403)
    assert "answer 403" in lasting.crawl_error(errors.PermissionDeniedError)
    assert len(lasting.requests) == 1 + MAX_REFUSED_ATTEMPTS


def test_link_to_another_host_gets_no_credentials():
    def answer(_request):
        links = {"next": "https://SECRET.example/v1/patients?page=2"}
        return httpx.Response(200, json={"patients": [RECORD], "total_entries": 500, "links": links})

    scripted = ScriptedClient(answer)
    message = scripted.crawl_error(errors.ForeignLinkError)
    assert message.startswith("Organization surf-rehab: patients, page 1: ")
    assert {request.url.host for request in scripted.requests} == {"api.au4.cliniko.com"}


def test_wait_before_a_retry_can_be_interrupted():
    def interrupt(_seconds):
        raise KeyboardInterrupt

    scripted = ScriptedClient(500, sleep=interrupt)
    with pytest.raises(KeyboardInterrupt):
        scripted.crawl()
    assert len(scripted.requests) == 1


@pytest.mark.parametrize("key", ["", "a b", "a:b", "kéy", "key\n"])
def test_key_that_no_header_can_carry_is_refused(key):
    with pytest.raises(errors.CredentialsFormatError) as caught:
        ScriptedClient(access=replace(ACCESS, api_key=key))
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("agent", ["", "a\r\nX-Evil: 1", "Práctica (a@example.com)"])
def test_user_agent_that_no_header_can_carry_is_refused(agent):
    with pytest.raises(errors.SettingsError, match="CLINIKO_CONTACT_EMAIL"):
        ScriptedClient(access=replace(ACCESS, user_agent=agent))


def test_representations_do_not_hold_the_key():
    client = ScriptedClient().client
    for thing in (client, client._sender, client._sender._headers, client._sender._transport, client.statistics):
        assert KEY not in repr(thing)
    assert repr(client) == f"<ClinikoClient of organization surf-rehab at {API}>"


class ClosableTransport(httpx.MockTransport):
    is_closed = False

    def close(self):
        self.is_closed = True


@pytest.fixture
def own_transport(monkeypatch):
    """Return the transport that clients without a given transport make."""
    transport = ClosableTransport(listing)
    monkeypatch.setattr("cliniko_pipeline.cliniko.exchange.sender.CurlTransport", lambda _limits: transport)
    return transport


def own_client():
    return ClinikoClient("surf-rehab", ACCESS, SlidingWindowBudget(1000))


def test_context_closes_the_transport_and_refuses_requests(own_transport):
    with own_client() as client:
        client.validate()
        assert not own_transport.is_closed
    assert own_transport.is_closed
    client.close()
    for use in (lambda: list(client.crawl(PATIENTS)), client.validate):
        with pytest.raises(RuntimeError):
            use()


def test_given_transport_stays_open_for_other_clients():
    transport = ClosableTransport(listing)
    with ScriptedClient(transport=transport).client as client:
        client.validate()
    assert not transport.is_closed


def test_failed_close_of_the_budget_hides_no_other_error(monkeypatch, own_transport):
    def refuse(_budget):
        raise errors.DatabaseUnavailableError("gone")

    monkeypatch.setattr(SlidingWindowBudget, "close", refuse)
    with pytest.raises(errors.AuthenticationError), ScriptedClient(401).client as client:
        client.validate()
    with pytest.raises(errors.DatabaseUnavailableError), own_client() as client:
        client.validate()
    assert own_transport.is_closed


def test_refused_field_is_named_and_not_sent_again():
    refused = httpx.Response(400, json={"message": "id is not sortable"})
    scripted = ScriptedClient(refused, then=lambda request: listing(request, total=150))
    assert sum(len(page.records) for page in scripted.crawl()) == 150
    assert [request.url.params["sort"] for request in scripted.requests] == [
        "created_at,id",
        "created_at",
        "created_at",
    ]
    assert scripted.client.refusals.of("patients") == ["sort id"]
    assert consequence("patients", "sort id").startswith("Cliniko refuses to sort patients by id: ")


def test_refused_filter_of_a_count_is_named():
    scripted = ScriptedClient(httpx.Response(400, json={"message": "created_at is not filterable"}))
    for _ in range(2):
        with pytest.raises(errors.FieldRefusedError, match="Cliniko refuses to filter this list by created_at"):
            scripted.client.total_entries(PATIENTS, created_before=datetime(2024, 1, 1, tzinfo=UTC))
    assert len(scripted.requests) == 1
