"""The sandbox's responses: lists with links, single records, errors, and web pages."""

import json
from dataclasses import dataclass
from urllib.parse import urlencode

from aiohttp import web

from cliniko_pipeline.sandbox import wire
from cliniko_pipeline.sandbox.accounts.account import Account, Page
from cliniko_pipeline.sandbox.faults import Fault
from cliniko_pipeline.sandbox.queries import Query

JSON = "application/json; charset=utf-8"
HTML = "text/html; charset=utf-8"
BLOCKED_PAGE = b"<!DOCTYPE html><html><head><title>403</title></head><body><h1>Blocked</h1></body></html>"
_GATEWAY_PAGE = b"<!DOCTYPE html><html><head><title>502</title></head><body><h1>Bad gateway</h1></body></html>"
_MAINTENANCE_PAGE = b"<!DOCTYPE html><html><head><title>Back soon</title></head><body>Maintenance</body></html>"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response before it is sent."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


FIXED_ANSWERS = {
    Fault.HTML_OK: Answer(200, _MAINTENANCE_PAGE, HTML),
    Fault.HTML_BAD_GATEWAY: Answer(502, _GATEWAY_PAGE, HTML),
    Fault.NOT_AN_OBJECT: Answer(200, b"[]"),
}


@dataclass(slots=True)
class Call:
    """A request as far as it is parsed. `account` is None until the API key is identified."""

    request: web.BaseRequest
    at: float
    shard: str = ""
    resource: str = ""
    record_id: str | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    account: Account | None = None

    @property
    def list_path(self) -> str:
        """The path of the list or record below the base URL."""
        return self.resource if self.record_id is None else f"{self.resource}/{self.record_id}"

    @property
    def base_url(self) -> str:
        """The base URL of the account, with the host that the request was sent to."""
        return f"http://{self.request.host}/{self.shard}/v1"


def record_answer(call: Call, account: Account, record_id: str, query: Query) -> Answer:
    """Return the response with one record, or a 404."""
    body = account.body(call.resource, record_id, query)
    return error(404, "Not found") if body is None else Answer(200, wire.bind(body, call.base_url))


def list_answer(call: Call, page: Page, query: Query, next_links_to: str | None) -> Answer:
    """Return the response with a page; `next_links_to` replaces the origin of `links.next`."""
    rest = {"total_entries": page.total_entries, "links": _page_links(call, page, query, next_links_to)}
    records = wire.bind(b",".join(page.bodies), call.base_url)
    head = b'{"%s":[' % call.resource.encode("ascii")
    return Answer(200, b"".join((head, records, b"],", to_json(rest)[1:])))


def _page_links(call: Call, page: Page, query: Query, next_links_to: str | None) -> dict[str, str]:
    url = f"{call.base_url}/{call.list_path}"
    kept = [(name, value) for name, value in call.parameters if name != "page"]
    links = {"self": _page_url(url, kept, query.page)}
    if query.page * query.per_page < page.total_entries:
        next_url = url if next_links_to is None else f"{next_links_to}/{call.shard}/v1/{call.resource}"
        links["next"] = _page_url(next_url, kept, query.page + 1)
    if query.page > 1:
        links["previous"] = _page_url(url, kept, query.page - 1)
    return links


def _page_url(url: str, kept: list[tuple[str, str]], page: int) -> str:
    return f"{url}?{urlencode([*kept, ('page', str(page))])}"


def error(status: int, message: str) -> Answer:
    """Return an error in Cliniko's format."""
    return Answer(status, to_json({"message": message}))


def to_json(value: object) -> bytes:
    """Return compact JSON in ASCII."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")
