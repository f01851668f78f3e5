"""Checks of `next` links, which are never followed. A wrong link reveals a wrong API URL."""

import re

import httpx

from cliniko_pipeline.cliniko.crawling.listing import Listing
from cliniko_pipeline.cliniko.records import RecordT
from cliniko_pipeline.errors import ForeignLinkError, UnexpectedResponseError

_DEFAULT_PORTS = {"https": 443, "http": 80}
_PAGE_PARAMETER = re.compile(r"(?:^|&)page=([^&#]*)")


def check_next_link(link: str | None, current: str, listing: Listing[RecordT], number: int) -> None:
    """Check the `next` link of page `number`, which was read from the URL `current`.

    Raises ForeignLinkError for a link that leaves the API URL. Raises UnexpectedResponseError if the link does not lead
    to page `number` + 1.
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
            "to Cliniko if the error persists"
        )


def _is_plain(link: str, listing: Listing[RecordT], number: int) -> bool:
    # Compare text first, because parsing the URL takes longer than all other work on a page except decoding.
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
