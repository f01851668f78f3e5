from datetime import UTC, datetime, timedelta, timezone

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliniko_pipeline.cliniko.decoding import DecodedPage
from cliniko_pipeline.cliniko.pagination import FetchedPage, at_or_after, crawl_pages, first_page_url
from cliniko_pipeline.cliniko.records import INDIVIDUAL_APPOINTMENTS, PATIENTS, PRACTITIONERS, Patient, RejectedRecord
from cliniko_pipeline.errors import ForeignLinkError, UnexpectedResponseError

API = "https://api.au4.cliniko.com/v1"
MOMENT = datetime(2024, 1, 1, tzinfo=UTC)


def patients(number):
    return [Patient(str(index), MOMENT, MOMENT) for index in range(number)]


class List:
    """A list of so many entries, walked through as a client would."""

    def __init__(self, total, *, api_url=API, next_url=None, per_page=100, end=None):
        self.total = total
        self.api_url = api_url
        self.next_url = next_url or (lambda url, page: url.copy_set_param("page", str(page + 1)))
        self.per_page = per_page
        self.end = end
        self.asked = []

    def fetch(self, url, number):
        self.asked.append(url)
        page = int(url.params["page"])
        assert page == number
        here = max(0, min(self.per_page, self.total - (page - 1) * self.per_page))
        last = page * self.per_page >= self.total if self.end is None else page >= self.end
        link = None if last else str(self.next_url(url, page))
        return FetchedPage(DecodedPage(patients(here), [], self.total, link), MOMENT)

    def crawl(self, resource=PATIENTS, filters=()):
        return list(crawl_pages(self.api_url, resource, filters, self.fetch))


def test_the_first_page_asks_for_everything_in_an_order_that_stays():
    url = first_page_url(API, INDIVIDUAL_APPOINTMENTS, ["updated_at:>=2024-01-01T00:00:00Z"])
    assert str(url).startswith(f"{API}/individual_appointments?")
    assert url.params.multi_items() == [
        ("page", "1"),
        ("per_page", "100"),
        ("sort", "created_at"),
        ("order", "asc"),
        ("q[]", "archived_at:*"),
        ("q[]", "cancelled_at:*"),
        ("q[]", "deleted_at:*"),
        ("q[]", "updated_at:>=2024-01-01T00:00:00Z"),
    ]


def test_practitioners_are_asked_for_without_a_filter_they_would_refuse():
    assert "q[]" not in first_page_url(API, PRACTITIONERS, []).params


def test_a_filter_by_time_is_in_utc_and_whole_seconds_never_later():
    moment = datetime(2024, 1, 1, 10, 0, 0, 999_999, tzinfo=timezone(timedelta(hours=10)))
    assert at_or_after("updated_at", moment) == "updated_at:>=2024-01-01T00:00:00Z"


@given(st.integers(0, 1500))
@settings(deadline=None, max_examples=60)
def test_every_record_comes_exactly_once_in_order(total):
    pages = List(total).crawl()
    assert sum(len(page.records) for page in pages) == total
    assert [page.number for page in pages] == list(range(1, len(pages) + 1))
    assert {page.pages for page in pages} == {max(1, -(-total // 100))}
    assert {page.server_date for page in pages} == {MOMENT}


def test_the_next_page_is_read_only_when_asked_for():
    source = List(300)
    pages = crawl_pages(API, PATIENTS, (), source.fetch)
    next(pages)
    assert len(source.asked) == 1


def test_a_server_that_gives_smaller_pages_is_followed_to_the_end():
    assert sum(len(page.records) for page in List(3000, per_page=50).crawl()) == 3000


def test_a_relative_link_is_followed():
    source = List(200, next_url=lambda _url, page: f"/v1/patients?page={page + 1}")
    source.crawl()
    assert str(source.asked[1]) == f"{API}/patients?page=2"


@pytest.mark.parametrize(
    "link",
    [
        "https://evil.example/v1/patients?page=2",
        "http://api.au4.cliniko.com/v1/patients?page=2",
        "https://api.au4.cliniko.com:8443/v1/patients?page=2",
        "https://api.au1.cliniko.com/v1/patients?page=2",
        "https://api.au4.cliniko.com.evil.example/v1/patients?page=2",
        "https://api.au4.cliniko.com@evil.example/v1/patients?page=2",
        "https://user:pass@api.au4.cliniko.com/v1/patients?page=2",
        "https://api.au4.cliniko.com/v2/patients?page=2",
        "https://api.au4.cliniko.com/v1evil/patients?page=2",
        "https://api.au4.cliniko.com/v1/../admin?page=2",
        "https://api.au4.cliniko.com/v1/%2e%2e/admin?page=2",
        "https://api.au4.cliniko.com/v1/%2E%2E%2Fadmin?page=2",
        "https://api.au4.cliniko.com/v1//evil.example?page=2",
        "https://api.au4.cliniko.com/v1/..%5cadmin?page=2",
        "//evil.example/v1/patients?page=2",
        "\\\\evil.example\\v1\\patients?page=2",
        "https:\\\\evil.example/v1/patients?page=2",
        "javascript:alert(1)",
        "file:///v1/patients?page=2",
        "https://[::1/v1/patients?page=2",
        "https://api.au4.cliniko.com:99999999/v1/patients?page=2",
        "https://api.au4.clin\tiko.com/v1/patients?page=2",
        "https://api.au4.cliniko.com\x00.evil.example/v1/patients?page=2",
        "https://api.au4.clinikо.com/v1/patients?page=2",  # noqa: RUF001 -- a Cyrillic letter
    ],
)
def test_a_link_out_of_the_api_is_not_followed(link):
    source = List(200, next_url=lambda _url, _page: link)
    with pytest.raises(ForeignLinkError, match="patients, page 1") as caught:
        source.crawl()
    assert len(source.asked) == 1
    assert "evil" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "link",
    [
        "HTTPS://API.au4.cliniko.com/v1/patients?page=2",
        "https://api.au4.cliniko.com:443/v1/patients?page=2",
        "https://api.au4.cliniko.com/v1/patients?page=2#fragment",
        "?page=2",
    ],
)
def test_the_same_place_written_otherwise_is_the_same_place(link):
    source = List(200, next_url=lambda _url, _page: link)
    assert len(source.crawl()) == 2
    assert "fragment" not in str(source.asked[1])


def test_the_path_prefix_is_part_of_the_address():
    source = List(200, api_url="http://127.0.0.1:8765/au4/v1", next_url=lambda _url, _page: "/au5/v1/patients?page=2")
    with pytest.raises(ForeignLinkError):
        source.crawl()


@pytest.mark.parametrize("page", ["1", "3", "0", "-2", "x", "", "2.0", "02"])
def test_a_loop_or_a_gap_ends_the_crawl(page):
    source = List(500, next_url=lambda _url, _number: f"{API}/patients?page={page}")
    with pytest.raises(UnexpectedResponseError, match="does not lead to page 2"):
        source.crawl()
    assert len(source.asked) == 1


def test_a_link_without_a_page_number_ends_the_crawl():
    with pytest.raises(UnexpectedResponseError):
        List(500, next_url=lambda _url, _number: f"{API}/patients").crawl()


def test_a_list_without_end_is_left():
    source = List(150, end=10**9)
    with pytest.raises(UnexpectedResponseError, match="no end"):
        source.crawl()
    assert len(source.asked) <= 14


def test_a_list_that_breaks_off_is_not_taken_for_whole():
    with pytest.raises(UnexpectedResponseError, match="ended on page 2 after 200 of 500"):
        List(500, end=2).crawl()


def test_records_removed_while_the_list_is_read_are_no_error():
    totals = iter([301, 250])

    def fetch(url, number):
        total = next(totals)
        link = str(url.copy_set_param("page", "2")) if number == 1 else None
        return FetchedPage(DecodedPage(patients(100), [], total, link), MOMENT)

    assert len(list(crawl_pages(API, PATIENTS, (), fetch))) == 2


def test_rejected_records_count_as_seen():
    def fetch(url, number):
        return FetchedPage(DecodedPage([], [RejectedRecord("patients", None, "id: missing")] * 150, 150, None), None)

    (page,) = crawl_pages(API, PATIENTS, (), fetch)
    assert (len(page.rejected), page.server_date) == (150, None)


def test_a_growing_list_is_read_to_its_new_end():
    growing = List(1000)
    fetch = growing.fetch

    def fetch_and_grow(url, number):
        growing.total += 30
        return fetch(url, number)

    pages = list(crawl_pages(API, PATIENTS, (), fetch_and_grow))
    assert sum(len(page.records) for page in pages) == growing.total
    assert isinstance(growing.asked[0], httpx.URL)
