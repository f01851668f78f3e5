"""Checks of the `next` links in Cliniko's answers. They are never followed, but a wrong one reveals a wrong API URL."""

import re

import httpx

from cliniko_pipeline.cliniko.crawling.listing import Listing
from cliniko_pipeline.cliniko.records import RecordT
from cliniko_pipeline.errors import ForeignLinkError, UnexpectedResponseError

_DEFAULT_PORTS = {"https": 443, "http": 80}
_PAGE_PARAMETER = re.compile(r"(?:^|&)page=([^&#]*)")


def check_next_link(link: str | None, current: str, listing: Listing[RecordT], number: int) -> None:
    """Check the link from page `number`, requested at `current`, to the next one.

    Raises ForeignLinkError for a link that leaves the API URL, UnexpectedResponseError for another page's number.
    """
    if link is None or _is_plain(link, listing, number):
        return
    where, url = f"{listing.resource.name}, page {number}", _join(link, httpx.URL(current))
    if url is None or not _stays_within(url, httpx.URL(listing.api_url)):
        raise ForeignLinkError(
            f"{where}: the link to the next page leaves the organization's API URL and was not followed: check that "
            "the API URL is Cliniko's own"
        )
    if url.params.get("page") != str(number + 1):
        raise UnexpectedResponseError(
            f"{where}: the link to the next page does not lead to page {number + 1}: try again later, and report this "
            "to Cliniko if it stays"
        )


def _is_plain(link: str, listing: Listing[RecordT], number: int) -> bool:
    # Parsing the URL takes longer than everything else done with a page, except decoding it.
    address, _, query = link.partition("?")
    return address == listing.address and _PAGE_PARAMETER.findall(query) == [str(number + 1)]


def _join(link: str, current: httpx.URL) -> httpx.URL | None:
    try:
        return current.join(link)
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
