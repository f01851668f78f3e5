from collections.abc import Callable, Iterator

import httpx
import pytest

from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.server import Sandbox
from cliniko_pipeline_tests.support.sandboxes import USER_AGENT, Caller


@pytest.fixture
def calling() -> Iterator[Callable[[Sandbox, Account], Caller]]:
    clients: list[httpx.Client] = []

    def make(served: Sandbox, account: Account) -> Caller:
        headers = {"Accept": "application/json", "User-Agent": USER_AGENT}
        client = httpx.Client(auth=(account.api_key, ""), headers=headers, timeout=60, trust_env=False)
        clients.append(client)
        return Caller(client, served, account)

    yield make
    for client in clients:
        client.close()
