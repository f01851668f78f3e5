"""From page to page of a list, without losing a record and without following a link anywhere else.

Belongs here: the address of the first page, and every rule a `next` link must keep. Does not: sending, retrying
and counting (client.py), and decoding (decoding.py).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic

import httpx

from cliniko_pipeline.cliniko.decoding import DecodedPage
from cliniko_pipeline.cliniko.records import RecordT, RejectedRecord, Resource
from cliniko_pipeline.errors import ForeignLinkError, UnexpectedResponseError

PAGE_SIZE = 100
"""Cliniko's maximum."""
SPARE_PAGES = 10
"""How many pages a list may have beyond twice what its number of entries explains; it can grow while it is read."""

_DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Page(Generic[RecordT]):
    """One page of a list. `number` counts from 1; `pages` and `total_entries` are the list's, as of this page.

    `server_date` is when Cliniko answered, by its own clock, in UTC: the first page's is what a later crawl may
    start from (less an overlap). None if the answer had no readable Date.
    """

    records: list[RecordT]
    rejected: list[RejectedRecord]
    number: int
    pages: int
    total_entries: int
    server_date: datetime | None


@dataclass(frozen=True, slots=True)
class FetchedPage(Generic[RecordT]):
    """A page as one request brought it."""

    decoded: DecodedPage[RecordT]
    server_date: datetime | None


def at_or_after(field: str, moment: datetime) -> str:
    """Return the filter for records whose `field` is at or after an aware instant, to the second below it."""
    return f"{field}:>={moment.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat()}Z"


def first_page_url(
    api_url: str, resource: Resource[RecordT], filters: Sequence[str], per_page: int = PAGE_SIZE
) -> httpx.URL:
    """Return the address of a list's first page, archived, cancelled and deleted records included.

    The order is by creation, which never changes: under any other order a record that changes while the list
    is read moves, and shifts another one over a page boundary, unseen.
    """
    params: list[tuple[str, str]] = [
        ("page", "1"),
        ("per_page", str(per_page)),
        ("sort", "created_at"),
        ("order", "asc"),
        *(("q[]", condition) for condition in (*resource.include_everything, *filters)),
    ]
    return httpx.URL(f"{api_url}/{resource.name}", params=params)


def crawl_pages(
    api_url: str,
    resource: Resource[RecordT],
    filters: Sequence[str],
    fetch: Callable[[httpx.URL, int], FetchedPage[RecordT]],
) -> Iterator[Page[RecordT]]:
    """Yield a list's pages in order, one request each, the next only when asked for.

    `fetch` gets an address and the page's number. Raises ForeignLinkError for a `next` link that leaves the API's
    address, and UnexpectedResponseError for links that cannot be right: loops, gaps, a list without an end, or one
    that ends before the entries it announced.
    """
    base, url, number, seen = httpx.URL(api_url), first_page_url(api_url, resource, filters), 1, 0
    while True:
        fetched = fetch(url, number)
        decoded = fetched.decoded
        seen += len(decoded.records) + len(decoded.rejected)
        pages = max(number, -(-decoded.total_entries // PAGE_SIZE))
        yield Page(decoded.records, decoded.rejected, number, pages, decoded.total_entries, fetched.server_date)
        if decoded.next_url is None:
            _check_whole(resource.name, number, seen, decoded.total_entries)
            return
        url, number = _followed(decoded.next_url, url, base, resource.name, number), number + 1
        _check_bounded(resource.name, number, decoded.total_entries)


def _followed(link: str, current: httpx.URL, base: httpx.URL, name: str, number: int) -> httpx.URL:
    """Return the address a `next` link names, if credentials may go there and it is the page after this one."""
    url = _joined(link, current)
    if url is None or not _stays_within(url, base):
        raise ForeignLinkError(
            f"{name}, page {number}: the link to the next page leaves the organization's API URL and was not "
            "followed: check that the API URL is Cliniko's own"
        )
    if url.params.get("page") != str(number + 1):
        raise UnexpectedResponseError(
            f"{name}, page {number}: the link to the next page does not lead to page {number + 1}: try again later, "
            "and report this to Cliniko if it stays"
        )
    return url


def _joined(link: str, current: httpx.URL) -> httpx.URL | None:
    # Judged by the parser that will send it, so that no other reading of the same text gets a say.
    try:
        return current.join(link).copy_with(fragment=None)
    except (httpx.InvalidURL, ValueError):
        return None


def _stays_within(url: httpx.URL, base: httpx.URL) -> bool:
    path, prefix = url.path, f"{base.path.rstrip('/')}/"
    return (
        _origin(url) == _origin(base)
        and not url.userinfo
        and path.startswith(prefix)
        and "\\" not in path
        and not {"", ".", ".."} & set(path.removeprefix(prefix).split("/"))
    )


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or _DEFAULT_PORTS.get(url.scheme)


def _check_bounded(name: str, number: int, total_entries: int) -> None:
    if number > 2 * -(-total_entries // PAGE_SIZE) + SPARE_PAGES:
        raise UnexpectedResponseError(
            f"{name}: Cliniko announces a page {number} of {total_entries} entries: the list seems to have no end; "
            "try again later, and report this to Cliniko if it stays"
        )


def _check_whole(name: str, number: int, seen: int, total_entries: int) -> None:
    # One page of tolerance: records can be removed for good while the list is read.
    if total_entries - seen > PAGE_SIZE:
        raise UnexpectedResponseError(
            f"{name}: the list ended on page {number} after {seen} of {total_entries} entries: try again later, and "
            "report this to Cliniko if it stays"
        )
