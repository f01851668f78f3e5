"""A client with a scripted Cliniko and a clock that moves only when the client waits."""

import random
import traceback
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from cliniko_pipeline.cliniko.client import ClinikoClient
from cliniko_pipeline.cliniko.crawling.crawl import Page
from cliniko_pipeline.cliniko.events import Event
from cliniko_pipeline.cliniko.exchange.sender import Access, RequestOptions
from cliniko_pipeline.cliniko.records import PATIENTS, Resource
from cliniko_pipeline_tests.support.budgets import SlidingWindowBudget

API = "https://api.au4.cliniko.com/v1"
KEY = "MS0xLVNFQ1JFVA-au4"
AGENT = "cliniko_pipeline (ops@example.com)"
ACCESS = Access(KEY, API, AGENT)
NOW = 1_700_000_000
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
RECORD = {"id": "1", "created_at": "2024-01-01T00:00:00Z", "updated_at": "2024-01-01T00:00:00Z"}

Answer = int | type[httpx.RequestError] | httpx.Response | Callable[[httpx.Request], httpx.Response]
"""A status, an error to raise, a response, or a function that makes a response."""


def listing(request: httpx.Request, total: int = 3) -> httpx.Response:
    """Respond to a request for patients as Cliniko does."""
    page = int(request.url.params["page"])
    per_page = int(request.url.params["per_page"])
    numbers = range((page - 1) * per_page, min(page * per_page, total))
    links = {"self": str(request.url)}
    if page * per_page < total:
        links["next"] = str(request.url.copy_set_param("page", str(page + 1)))
    entries = [{**RECORD, "id": str(number + 1)} for number in numbers]
    return httpx.Response(
        200, headers={"Date": DATE}, json={"patients": entries, "total_entries": total, "links": links}
    )


class ScriptedClient:
    """A client with a scripted Cliniko, and a record of its requests, waits and events."""

    def __init__(
        self,
        *script: Answer,
        limit: int = 200,
        then: Answer = listing,
        access: Access = ACCESS,
        transport: httpx.BaseTransport | None = None,
        on_event: Callable[[Event], object] | None = None,
        **options: Any,
    ) -> None:
        self.script = list(script)
        self.then = then
        self.now = 0.0
        self.waits: list[float] = []
        self.requests: list[httpx.Request] = []
        self.events: list[Event] = []
        self.budget = SlidingWindowBudget(limit, clock=lambda: self.now, sleep=self.sleep)
        defaults: dict[str, Any] = {
            "sleep": self.sleep,
            "wall_clock": lambda: NOW + self.now,
            "rng": random.Random(1),
            # Requests must be sent in the order of the script.
            "max_pages_in_flight": 1,
        }
        self.client = ClinikoClient(
            "surf-rehab",
            access,
            self.budget,
            transport=transport or httpx.MockTransport(self.answer),
            options=RequestOptions(**(defaults | options)),
            on_event=on_event or self.events.append,
        )

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.script.pop(0) if self.script else self.then
        if isinstance(answer, int):
            return httpx.Response(answer, headers={"Date": DATE}, text=f"SECRET body {request.url}")
        if isinstance(answer, type):
            raise answer(f"SECRET {request.url}", request=request)
        return answer if isinstance(answer, httpx.Response) else answer(request)

    def crawl(self, resource: Resource[Any] = PATIENTS, **options: Any) -> list[Page[Any]]:
        return list(self.client.crawl(resource, **options))

    def crawl_error(self, error: type[Exception]) -> str:
        """Crawl, and return the message of the raised error. Assert that the error reveals no secret."""
        with pytest.raises(error) as caught:
            self.crawl()
        assert type(caught.value) is error
        assert_reveals_no_secret(caught.value)
        return str(caught.value)


def assert_reveals_no_secret(error: BaseException) -> None:
    """Assert that the error, its chained errors and its traceback contain no secret of these tests."""
    chain: list[BaseException] = []
    chained: BaseException | None = error
    while chained is not None:
        chain.append(chained)
        chained = chained.__cause__ or chained.__context__
    assert not [link for link in chain if isinstance(link, httpx.HTTPError)]
    texts = ["".join(traceback.format_exception(error)), *(f"{link} {link!r} {vars(link)}" for link in chain)]
    authorization = httpx.BasicAuth(KEY, "")._auth_header.removeprefix("Basic ")
    for secret in (KEY, "SECRET", authorization, "q%5B%5D", "per_page", "archived_at"):
        assert secret not in " ".join(texts)
    assert "\n" not in str(error)
