"""Tests of crawls of a list that does not change. test_moving_lists.py has lists that change."""

from datetime import UTC, datetime, timedelta, timezone

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliniko_pipeline.cliniko.crawling.crawl import crawl_pages
from cliniko_pipeline.cliniko.crawling.listing import Listing
from cliniko_pipeline.cliniko.crawling.page_requests import MAX_CONTRADICTIONS
from cliniko_pipeline.cliniko.decoding.pages import FetchedPage
from cliniko_pipeline.cliniko.records import INDIVIDUAL_APPOINTMENTS, PATIENTS, PRACTITIONERS, Patient, RejectedRecord
from cliniko_pipeline.errors import ForeignLinkError, UnexpectedResponseError
from cliniko_pipeline_tests.support.properties import examples

API = "https://api.au4.cliniko.com/v1"
MOMENT = datetime(2024, 1, 1, tzinfo=UTC)


def patients(first, beyond):
    return [Patient(str(index), MOMENT - timedelta(days=1, seconds=-index), MOMENT) for index in range(first, beyond)]


def crawl(fetch, checkpoint=None, *, api_url=API):
    """Crawl the list and return the pages. Each page is fetched when it is requested."""

    def request(url, number):
        fetched = fetch(httpx.URL(url), number)
        return lambda: fetched

    return crawl_pages(Listing(api_url, PATIENTS), request, checkpoint, max_in_flight=1)


class List:
    """A list of `total` entries that does not change, with the requests for its pages."""

    def __init__(self, total, *, api_url=API, next_url=None, per_page=100, end=None, date=MOMENT):
        self.total = total
        self.api_url = api_url
        self.next_url = next_url or (lambda url, page: url.copy_set_param("page", str(page + 1)))
        self.per_page = per_page
        self.end = end
        self.date = date
        self.requested = []

    def fetch(self, url, number):
        self.requested.append(url)
        page = int(url.params["page"])
        assert page == number
        first = (page - 1) * self.per_page
        beyond = min(self.total, first + self.per_page)
        last = beyond >= self.total if self.end is None else page >= self.end
        link = None if last else str(self.next_url(url, page))
        return FetchedPage(patients(first, beyond), [], self.total, link, self.date)

    def pages(self, checkpoint=None):
        return crawl(self.fetch, checkpoint, api_url=self.api_url)

    def crawl(self):
        return list(self.pages())


def test_url_of_a_page_has_order_filters_and_size():
    """Times are rounded down to seconds, in UTC."""
    moment = datetime(2024, 1, 1, 10, 0, 0, 999_999, tzinfo=timezone(timedelta(hours=10)))
    url = httpx.URL(Listing(API, INDIVIDUAL_APPOINTMENTS, moment).before(moment + timedelta(hours=1)).url(3))
    assert str(url).startswith(f"{API}/individual_appointments?")
    filters = ["archived_at:*", "cancelled_at:*", "deleted_at:*"]
    filters += ["updated_at:>=2024-01-01T00:00:00Z", "updated_at:<2024-01-01T01:00:00Z"]
    assert url.params.get_list("q[]") == filters
    others = [(name, value) for name, value in url.params.multi_items() if name != "q[]"]
    assert others == [("sort", "created_at,id"), ("page", "3"), ("per_page", "100")]
    assert "q[]" not in httpx.URL(Listing(API, PRACTITIONERS).url(1)).params


@given(st.integers(0, 1500), st.sampled_from([MOMENT, None]))
@settings(max_examples=examples(20))
def test_unchanged_list_yields_each_record_once(total, date):
    source = List(total, date=date)
    pages = source.crawl()
    needed = max(1, -(-total // 100))
    assert sorted(int(record.id) for page in pages for record in page.records) == list(range(total))
    assert [page.number for page in pages] == list(range(1, needed + 1))
    assert {(page.pages, page.total_entries, page.started_at) for page in pages} == {(needed, total, date)}
    assert [page.checkpoint is None for page in pages] == [False] * (needed - 1) + [True]
    assert len(source.requested) == needed


def test_resumed_crawl_reads_one_page_twice():
    source = List(550)
    pages = source.pages()
    read = [next(pages) for _ in range(3)]
    rest = source.pages(read[-1].checkpoint)
    read += [next(rest) for _ in range(3)]
    assert {int(record.id) for page in read for record in page.records} == set(range(100)) | set(range(200, 550))
    assert [page.number for page in read] == [1, 2, 3, 3, 4, 5]
    assert [url.params["page"] for url in source.requested] == ["1", "6", "5", "5", "4", "3"]


def test_contradictory_page_is_requested_again():
    source = List(250)
    ends = iter([1, None])

    def fetch(url, number):
        source.end = next(ends, None)
        return source.fetch(url, number)

    assert len(list(crawl(fetch))) == 3
    assert [url.params["page"] for url in source.requested] == ["1", "1", "3", "2"]


@pytest.mark.parametrize(
    "link",
    [
        "https://evil.example/v1/patients?page=2",
        "http://api.au4.cliniko.com/v1/patients?page=2",
        "https://api.au4.cliniko.com:8443/v1/patients?page=2",
        "https://user:pass@api.au4.cliniko.com/v1/patients?page=2",
        "https://api.au4.cliniko.com/v1evil/patients?page=2",
        "https://api.au4.cliniko.com/v1/../admin?page=2",
        "https://api.au4.cliniko.com/v1/%2E%2E%2Fadmin?page=2",
        "https://api.au4.cliniko.com/v1//evil.example?page=2",
        "https://api.au4.cliniko.com/v1/..%5cadmin?page=2",
        "//evil.example/v1/patients?page=2",
        "\\\\evil.example\\v1\\patients?page=2",
        "https://[::1/v1/patients?page=2",
        "https://api.au4.cliniko.com\x00.evil.example/v1/patients?page=2",
    ],
)
def test_link_out_of_the_api_is_refused(link):
    source = List(200, next_url=lambda _url, _page: link)
    with pytest.raises(ForeignLinkError, match="patients, page 1") as caught:
        source.crawl()
    assert len(source.requested) == 1
    assert "evil" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "link", ["HTTPS://API.au4.cliniko.com:443/v1/patients?page=2#fragment", "?page=2", "/v1/users?page=2"]
)
def test_link_decides_neither_form_nor_address_of_the_request(link):
    source = List(200, next_url=lambda _url, _page: link)
    assert len(source.crawl()) == 2
    assert {url.path for url in source.requested} == {"/v1/patients"}


@pytest.mark.parametrize("query", ["?page=1", "?page=x", "?page=02", ""])
def test_link_to_another_page_number_is_refused(query):
    source = List(500, next_url=lambda _url, _number: f"{API}/patients{query}")
    with pytest.raises(UnexpectedResponseError, match="does not lead to page 2"):
        source.crawl()
    assert len(source.requested) == 1


@pytest.mark.parametrize(
    "source", [List(150, end=10**9), List(500, end=2), List(0, end=10**9), List(100, end=2), List(3000, per_page=50)]
)
def test_list_that_contradicts_its_total_is_refused(source):
    with pytest.raises(UnexpectedResponseError, match="the list does not have"):
        source.crawl()
    assert len(source.requested) <= MAX_CONTRADICTIONS + 5


def test_list_that_announces_missing_records_is_refused():
    source = List(150)
    source.total = 10**12

    def fetch(url, number):
        return source.fetch(url, number) if number == 1 else FetchedPage([], [], 10**12, None, MOMENT)

    with pytest.raises(UnexpectedResponseError, match="page 10000000000: the list does not have"):
        list(crawl(fetch))


def test_list_that_never_stops_growing_is_refused():
    source = List(1000)

    def fetch(url, number):
        source.total += 250
        return source.fetch(url, number)

    with pytest.raises(UnexpectedResponseError, match="keeps changing"):
        list(crawl(fetch))
    assert len(source.requested) <= 3 * MAX_CONTRADICTIONS


def test_rejected_records_count_as_entries():
    def fetch(url, number):
        return FetchedPage([], [RejectedRecord("patients", None, "id: missing")] * 50, 50, None)

    (page,) = crawl(fetch)
    assert (len(page.rejected), page.started_at) == (50, None)
