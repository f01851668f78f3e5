import itertools
import logging
import random
import threading
import traceback
from datetime import UTC, datetime

import httpx
import pytest

from cliniko_pipeline import errors
from cliniko_pipeline.cliniko import (
    INDIVIDUAL_APPOINTMENTS,
    PATIENTS,
    ClinikoClient,
    PageRead,
    Retrying,
    Waiting,
    pagination,
)
from cliniko_pipeline.cliniko import client as client_module
from cliniko_pipeline_tests.support.budgets import SlidingWindowBudget

API = "https://api.au4.cliniko.com/v1"
KEY = "MS0xLVNFQ1JFVA-au4"
AGENT = "cliniko_pipeline (ops@example.com)"
NOW = 1_700_000_000
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
SINCE = datetime(2024, 1, 1, tzinfo=UTC)
RECORD = {"id": "1", "created_at": "2024-01-01T00:00:00Z", "updated_at": "2024-01-01T00:00:00Z"}


def listing(request, total=3, name="patients"):
    """Answer a list request as Cliniko does."""
    page = int(request.url.params["page"])
    per_page = int(request.url.params["per_page"])
    numbers = range((page - 1) * per_page, min(page * per_page, total))
    links = {"self": str(request.url)}
    if page * per_page < total:
        links["next"] = str(request.url.copy_set_param("page", str(page + 1)))
    entries = [{**RECORD, "id": str(number + 1)} for number in numbers]
    return httpx.Response(200, headers={"Date": DATE}, json={name: entries, "total_entries": total, "links": links})


class Bench:
    """A client with a scripted Cliniko, a clock that only waiting moves, and everything it did on record."""

    def __init__(self, *script, limit=200, then=listing, **options):
        self.script = list(script)
        self.then = then
        self.now = 0.0
        self.slept = []
        self.requests = []
        self.events = []
        self.budget = SlidingWindowBudget(limit, clock=lambda: self.now, sleep=self.sleep)
        self.client = ClinikoClient(
            options.pop("organization_id", "surf-rehab"),
            options.pop("api_key", KEY),
            options.pop("api_url", API),
            options.pop("user_agent", AGENT),
            self.budget,
            transport=httpx.MockTransport(self.answer),
            sleep=self.sleep,
            clock=lambda: self.now,
            wall_clock=lambda: NOW + self.now,
            rng=random.Random(1),
            on_event=self.events.append,
            # The script has an order.
            most_at_once=options.pop("most_at_once", 1),
            **options,
        )

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def answer(self, request):
        self.requests.append(request)
        answer = self.script.pop(0) if self.script else self.then
        if isinstance(answer, int):
            return httpx.Response(answer, headers={"Date": DATE}, text=f"SECRET body {request.url}")
        if isinstance(answer, type) and issubclass(answer, Exception):
            raise answer(f"SECRET {request.url}", request=request)
        return answer(request) if callable(answer) else answer

    def crawl(self, resource=PATIENTS, **what):
        return list(self.client.crawl(resource, **what))

    def crawl_fails(self, error):
        with pytest.raises(error) as caught:
            self.crawl(changed_since=SINCE)
        assert type(caught.value) is error
        assert_tells_no_secret(caught.value)
        return str(caught.value)


def assert_tells_no_secret(error):
    """Hold the error, everything chained to it and its printed traceback against the secrets of these tests."""
    printed = "".join(traceback.format_exception(error))
    chained, chain = error, []
    while chained is not None:
        chain.append(chained)
        chained = chained.__cause__ or chained.__context__
    assert not [link for link in chain if isinstance(link, httpx.HTTPError)]
    told = " ".join([printed, *(f"{link} {link!r} {vars(link)}" for link in chain)])
    for secret in (
        KEY,
        "SECRET",
        httpx.BasicAuth(KEY, "")._auth_header.removeprefix("Basic "),
        "q%5B%5D",
        "per_page",
        "updated_at",
    ):
        assert secret not in str(error)
        assert secret not in told
    assert "\n" not in str(error)


def test_a_list_is_read_whole_and_counted():
    bench = Bench(then=lambda request: listing(request, total=250))
    pages = bench.crawl()
    assert sorted(int(record.id) for page in pages for record in page.records) == list(range(1, 251))
    assert [(page.number, page.pages) for page in pages] == [(1, 3), (2, 3), (3, 3)]
    assert pages[0].horizon == datetime.fromtimestamp(NOW, UTC)
    assert bench.events[-1] == PageRead("patients", 3, 3, 100, 250, budget_left=197)
    statistics = bench.client.statistics
    assert (statistics.requests, statistics.pages, statistics.records, statistics.retries) == (3, 3, 250, 0)


def test_a_request_carries_what_cliniko_requires():
    bench = Bench()
    bench.crawl(changed_since=SINCE)
    (request,) = bench.requests
    assert request.method == "GET"
    assert request.headers["Accept"] == "application/json"
    assert request.headers["User-Agent"] == AGENT
    assert request.headers["Authorization"] == httpx.BasicAuth(KEY, "")._auth_header
    assert request.url.params.get_list("q[]") == ["archived_at:*", "updated_at:>=2024-01-01T00:00:00Z"]


@pytest.mark.parametrize(
    ("trouble", "cause"),
    [
        (500, "answer 500"),
        (502, "answer 502"),
        (408, "answer 408"),
        (425, "answer 425"),
        (httpx.ReadTimeout, "time-out"),
        (httpx.ConnectTimeout, "time-out"),
        (httpx.PoolTimeout, "time-out"),
        (httpx.ConnectError, "failed connection"),
        (httpx.ReadError, "broken connection"),
        (httpx.RemoteProtocolError, "broken connection"),
        (httpx.WriteError, "broken connection"),
        (httpx.DecodingError, "unreadable answer"),
        (httpx.Response(200, text="<html>sorry</html>"), "unreadable answer"),
        (httpx.Response(200, text='{"patients": [{"id"'), "unreadable answer"),
        (httpx.Response(204), "unreadable answer"),
    ],
)
def test_passing_trouble_costs_a_wait_not_the_crawl(trouble, cause):
    bench = Bench(trouble)
    (page,) = bench.crawl()
    assert len(page.records) == 3
    assert bench.events[0] == Retrying("patients, page 1", 1, bench.slept[0], cause)
    statistics = bench.client.statistics
    assert (statistics.requests, statistics.retries, statistics.seconds_waited) == (2, 1, sum(bench.slept))


def test_after_all_attempts_the_error_says_what_happened():
    bench = Bench(httpx.ReadTimeout, 502, httpx.ConnectTimeout, 502, httpx.ReadTimeout, 500, 500)
    message = bench.crawl_fails(errors.ClinikoUnavailableError)
    assert message == (
        "Organization surf-rehab: patients, page 1: given up after 6 attempts (3 time-outs, 2 answers 502, "
        "1 answer 500): the next sync tries again; if it stays, check with `cliniko-pipeline doctor`"
    )
    assert len(bench.requests) == 6
    assert len(bench.slept) == 5


def test_the_number_of_attempts_is_the_callers():
    bench = Bench(then=503, max_attempts=1)
    assert "given up after 1 attempt (1 answer 503)" in bench.crawl_fails(errors.ClinikoUnavailableError)
    assert bench.slept == []


def test_trouble_on_a_later_page_names_that_page():
    bench = Bench(lambda request: listing(request, total=250), then=500)
    assert "patients, page 3: given up" in bench.crawl_fails(errors.ClinikoUnavailableError)


def test_every_transport_error_of_httpx_is_taken_for_passing_trouble():
    kinds, found = [httpx.RequestError], set()
    while kinds:
        kind = kinds.pop()
        found.add(kind)
        kinds.extend(kind.__subclasses__())
    assert len(found) > 10
    for kind in found:
        bench = Bench(then=kind, max_attempts=2)
        assert "given up after 2 attempts" in bench.crawl_fails(errors.ClinikoUnavailableError)


@pytest.mark.parametrize(
    ("answer", "error", "hint"),
    [
        (401, errors.AuthenticationError, "organizations add"),
        (403, errors.PermissionDeniedError, "right"),
        (httpx.Response(403, html="<h1>SECRET</h1>"), errors.PermissionDeniedError, "CLINIKO_CONTACT_EMAIL"),
        (400, errors.RequestRejectedError, "answer 400"),
        (404, errors.RequestRejectedError, "API URL"),
        (422, errors.RequestRejectedError, "answer 422"),
        (httpx.Response(302, headers={"Location": "https://SECRET.example"}), errors.ForeignLinkError, "redirect"),
        (httpx.Response(200, json={"message": "SECRET"}), errors.UnexpectedResponseError, "patients"),
        (httpx.Response(200, json=["SECRET"]), errors.UnexpectedResponseError, "patients"),
    ],
)
def test_lasting_trouble_is_told_at_once_with_what_to_do(answer, error, hint):
    bench = Bench(answer)
    message = bench.crawl_fails(error)
    assert message.startswith("Organization surf-rehab: ")
    assert hint in message
    assert (len(bench.requests), bench.slept) == (1, [])


def test_a_link_to_another_host_gets_no_credentials():
    def answer(request):
        links = {"next": "https://SECRET.example/v1/patients?page=2"}
        return httpx.Response(200, json={"patients": [RECORD], "total_entries": 500, "links": links})

    bench = Bench(answer)
    assert bench.crawl_fails(errors.ForeignLinkError).startswith("Organization surf-rehab: patients, page 1: ")
    assert {request.url.host for request in bench.requests} == {"api.au4.cliniko.com"}


def test_a_429_makes_everyone_with_the_key_wait_until_the_reset():
    limited = httpx.Response(429, headers={"X-RateLimit-Reset": str(NOW + 40), "Date": DATE})
    bench = Bench(limited)
    assert len(bench.crawl()) == 1
    assert bench.now == pytest.approx(41)
    assert [event for event in bench.events if isinstance(event, Waiting)] == [
        Waiting(41.0, "Cliniko asked to wait (429)")
    ]
    statistics = bench.client.statistics
    assert (statistics.rate_limited, statistics.retries, statistics.requests) == (1, 1, 2)
    assert statistics.seconds_waited == pytest.approx(41)


def test_a_429_without_end_is_given_up():
    message = Bench(then=429).crawl_fails(errors.RateLimitedError)
    assert "6 answers 429" in message
    assert "CLINIKO_REQUESTS_PER_MINUTE" in message


def test_the_waits_for_one_request_are_bounded_in_total():
    limited = httpx.Response(429, headers={"X-RateLimit-Reset": str(NOW + 290), "Date": DATE})
    bench = Bench(*[limited] * 50, max_attempts=50)
    bench.crawl_fails(errors.RateLimitedError)
    assert bench.now <= client_module.LONGEST_WAIT_SECONDS


def test_every_attempt_is_asked_for_at_the_budget():
    bench = Bench(500, 500, limit=1)
    bench.crawl()
    assert bench.now >= 120
    assert [event.reason for event in bench.events if isinstance(event, Waiting)] == [
        "the request budget was used up"
    ] * 2


def test_a_wait_can_be_interrupted():
    class InterruptedSyncError(Exception):
        pass

    bench = Bench(500)

    def interrupt(seconds):
        raise InterruptedSyncError

    bench.client._sleep = interrupt
    with pytest.raises(InterruptedSyncError):
        bench.crawl()
    assert len(bench.requests) == 1


def test_a_bad_record_does_not_cost_its_page():
    body = {"patients": [RECORD, {**RECORD, "id": None}, {**RECORD, "id": "3"}], "total_entries": 3, "links": {}}
    bench = Bench(httpx.Response(200, json=body))
    (page,) = bench.crawl()
    assert [record.id for record in page.records] == ["1", "3"]
    assert len(page.rejected) == 1
    assert bench.client.statistics.records == 2


def test_a_crawl_goes_on_where_another_one_broke_off():
    bench = Bench(then=lambda request: listing(request, total=250))
    first, second = itertools.islice(bench.client.crawl(PATIENTS), 2)
    (third,) = bench.crawl(position=second.following)
    assert {record.id for page in (first, second, third) for record in page.records} == set(map(str, range(1, 251)))
    assert (third.number, third.horizon, third.following) == (3, first.horizon, None)
    assert len(bench.requests) == 3


def test_counting_a_list_costs_one_request():
    bench = Bench(then=lambda request: listing(request, total=5_000))
    assert bench.client.total_entries(PATIENTS) == 5_000
    (request,) = bench.requests
    assert request.url.params["per_page"] == "1"
    assert request.url.params.get_list("q[]") == ["archived_at:*"]


def test_validating_asks_for_one_record():
    bench = Bench(then=lambda request: listing(request, total=5_000))
    bench.client.validate()
    (request,) = bench.requests
    assert request.url.path == "/v1/patients"
    assert request.url.params["per_page"] == "1"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (401, errors.AuthenticationError),
        (403, errors.PermissionDeniedError),
        (404, errors.RequestRejectedError),
        (500, errors.ClinikoUnavailableError),
        (httpx.ConnectError, errors.ClinikoUnavailableError),
        (429, errors.RateLimitedError),
        (httpx.Response(200, json={}), errors.UnexpectedResponseError),
    ],
)
def test_validating_tells_what_is_wrong(answer, error):
    bench = Bench(then=answer)
    with pytest.raises(error, match=r"^Organization surf-rehab: ") as caught:
        bench.client.validate()
    assert_tells_no_secret(caught.value)


@pytest.mark.parametrize("key", ["", " ", "a b", "a:b", "a\nb", "kéy", "key\n"])
def test_a_key_that_cannot_be_sent_is_refused_unseen(key):
    with pytest.raises(errors.CredentialsFormatError) as caught:
        Bench(api_key=key)
    assert not key.strip() or key not in str(caught.value)


@pytest.mark.parametrize("agent", ["", "a\r\nX-Evil: 1", "Práctica (a@example.com)", " a"])
def test_a_user_agent_that_cannot_be_sent_is_refused(agent):
    with pytest.raises(errors.SettingsError, match="CLINIKO_CONTACT_EMAIL"):
        Bench(user_agent=agent)


def test_no_representation_holds_the_key():
    bench = Bench()
    bench.crawl()
    for thing in (bench.client, bench.client._headers, bench.client._transport, bench.budget, bench.client.statistics):
        assert "SECRET" not in repr(thing)
        assert KEY not in repr(thing)
    assert repr(bench.client) == f"<ClinikoClient of organization surf-rehab at {API}>"


def test_nothing_logged_holds_the_key_or_a_record(caplog):
    caplog.set_level(logging.DEBUG)
    Bench(500).crawl()
    assert KEY not in caplog.text
    assert httpx.BasicAuth(KEY, "")._auth_header not in caplog.text


def test_leaving_the_context_closes_the_connections():
    bench = Bench()
    closed = []
    bench.client._transport.close = lambda: closed.append("the transport")
    with bench.client as client:
        client.validate()
        assert not closed
    assert closed
    client.close()


def test_a_client_that_was_closed_says_so_instead_of_waiting():
    bench = Bench()
    with bench.client as client:
        client.validate()
    with pytest.raises(RuntimeError):
        list(client.crawl(PATIENTS))
    with pytest.raises(RuntimeError):
        client.validate()


class DatabaseIsGone(SlidingWindowBudget):
    def close(self):
        raise errors.DatabaseUnavailableError("gone")


def test_a_budget_that_cannot_be_told_hides_no_error_and_is_one_where_there_is_none():
    bench = Bench(401)
    bench.client._budget = DatabaseIsGone(100)
    with pytest.raises(errors.AuthenticationError), bench.client as client:
        client.validate()
    bench = Bench()
    closed = []
    bench.client._transport.close = lambda: closed.append("the transport")
    bench.client._budget = DatabaseIsGone(100)
    with pytest.raises(errors.DatabaseUnavailableError), bench.client as client:
        client.validate()
    assert closed


@pytest.mark.parametrize("most_at_once", [1, 2, 8])
def test_so_many_pages_are_on_their_way_at_once_and_no_more_and_events_come_one_at_a_time(monkeypatch, most_at_once):
    monkeypatch.setattr(pagination, "FEWEST_AT_ONCE", most_at_once)
    lock, now, most, telling = threading.Lock(), [0], [0], [0]
    together = threading.Barrier(most_at_once)

    def answer(request):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        if int(request.url.params["page"]) > 40 - most_at_once:
            together.wait(5)
        with lock:
            now[0] -= 1
        return listing(request, total=4000)

    def told(event):
        telling[0] += 1
        assert telling[0] == 1
        telling[0] -= 1

    bench = Bench(then=answer, most_at_once=most_at_once)
    bench.client._on_event = told
    with bench.client:
        pages = bench.crawl()
    assert sorted(int(record.id) for page in pages for record in page.records) == list(range(1, 4001))
    assert len(bench.requests) == 40
    assert most[0] == most_at_once


def test_trouble_of_a_page_that_was_asked_for_ahead_is_told_when_its_turn_comes(monkeypatch):
    monkeypatch.setattr(pagination, "FEWEST_AT_ONCE", 8)

    def answer(request):
        return httpx.Response(404) if request.url.params["page"] == "5" else listing(request, total=1000)

    bench = Bench(then=answer, most_at_once=8)
    seen = []
    with bench.client, pytest.raises(errors.RequestRejectedError, match="patients, page 5"):
        seen.extend(page.number for page in bench.client.crawl(PATIENTS))
    # Those that were on their way with it are held back until a later one confirms them.
    assert seen == [1]


def test_a_client_reads_any_list():
    bench = Bench(httpx.Response(200, json={"individual_appointments": [], "total_entries": 0, "links": {}}))
    (page,) = bench.crawl(INDIVIDUAL_APPOINTMENTS)
    assert (page.records, page.pages) == ([], 1)
