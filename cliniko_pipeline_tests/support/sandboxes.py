"""Hand-written records, the accounts of the demo, and an HTTP client for tests of the sandbox."""

from datetime import UTC, datetime
from functools import cache
from typing import Any

import httpx

from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.accounts.demo import DemoOrganization, demo_organizations
from cliniko_pipeline.sandbox.server import Sandbox

KEY = "bm90LWEtc2VjcmV0-au4"
USER_AGENT = "sandbox-tests (tests@example.org)"
ANCHOR = datetime(2026, 3, 4, 5, 6, 7, 890_000, tzinfo=UTC)
EVERYTHING = ["archived_at:*", "cancelled_at:*", "deleted_at:*"]


def record(number: int, **fields: Any) -> dict[str, Any]:
    at = f"2024-01-01T00:{number // 60:02d}:{number % 60:02d}Z"
    return {"id": str(number), "created_at": at, "updated_at": at, **fields}


def linked(path: str) -> dict[str, Any]:
    return {"links": {"self": f"{{base}}/{path}"}}


@cache
def demo(*, empty_strings_for_nulls: bool = True) -> tuple[DemoOrganization, ...]:
    """Return the demo's organizations at ANCHOR. Tests share them and must not change them."""
    return tuple(demo_organizations(ANCHOR, empty_strings_for_nulls=empty_strings_for_nulls))


class Caller:
    """A client that sends requests to one account."""

    def __init__(self, http: httpx.Client, served: Sandbox, account: Account) -> None:
        self._http = http
        self._served = served
        self.account = account

    def get(self, path: str, *filters: str, **parameters: Any) -> httpx.Response:
        pairs = [*parameters.items(), *(("q[]", condition) for condition in filters)]
        return self._http.get(self._served.base_url(self.account) + path, params=pairs)

    def ids(self, path: str, *filters: str, **parameters: Any) -> list[str]:
        answer = self.get(path, *filters, **parameters)
        assert answer.status_code == 200, answer.text
        return [entry["id"] for entry in answer.json()[path.removeprefix("/")]]

    def request(self, method: str, path: str, **given: Any) -> httpx.Response:
        return self._http.request(method, self._served.base_url(self.account) + path, **given)
