"""A Dagster that takes requests and does not answer: whoever does not need it is not held up."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.api_servers import served
from cliniko_pipeline_tests.support.clinics import opened_clinics
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.services import client, token
from cliniko_pipeline_tests.support.signatures import add_secret, send
from cliniko_pipeline_tests.support.waiting import wait_until

HELD_UP = 8.0
"""In seconds; Dagster is waited for twenty."""


class SilentServer:
    """Takes connections, and never answers; `close` ends them all."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.taken: list[socket.socket] = []
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        with suppress(OSError):
            while True:
                self.taken.append(self._socket.accept()[0])

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)
        for each in self.taken:
            each.close()


@pytest.fixture
def silent() -> Iterator[SilentServer]:
    with closing(SilentServer()) as opened:
        yield opened


@pytest.fixture
def runtime(silent: SilentServer, database_url: URL, tmp_path: Path) -> Iterator[Runtime]:
    environ = environment(database_url, tmp_path / "home") | {"API_DAGSTER_URL": silent.url}
    with opened_clinics(environ) as clinics:
        clinics.open(["alpha", "beta"])
        with open_runtime(load_settings(environ)) as opened:
            yield opened


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/syncs/{}"),
        ("GET", "/v1/syncs/{}/events"),
        ("DELETE", "/v1/syncs/{}"),
        ("GET", "/v1/organizations/alpha/syncs"),
        ("POST", "/v1/organizations/alpha/syncs"),
        ("GET", "/readyz"),
    ],
)
def test_sixty_requests_that_wait_for_dagster_hold_up_nobody_else(
    runtime: Runtime, silent: SilentServer, method: str, path: str
) -> None:
    secret, _ = add_secret(runtime, "beta")
    waiting = token(runtime.database, "read", "sync", organizations=["alpha"])
    reading = token(runtime.database, "read", organizations=["beta"])
    with served(runtime) as url, client(url, waiting) as hostile, client(url, reading) as reader:

        def ask(_number: int) -> int:
            sent.append(1)
            return hostile.request(method, path.format(uuid4())).status_code

        sent: list[int] = []
        with ThreadPoolExecutor(60) as threads:
            asked = [threads.submit(ask, number) for number in range(60)]
            wait_until(lambda: len(sent) == 60 and bool(silent.taken), "Dagster was not asked")
            # For the others to come as far as they can.
            time.sleep(1)
            begun = time.monotonic()
            answers = [
                httpx.get(f"{url}/healthz", trust_env=False, timeout=60).status_code,
                reader.get("/v1/organizations/beta/active-patients").status_code,
                send(url, "beta", secret).status_code,
            ]
            took = time.monotonic() - begun
            silent.close()
            assert {each.result() for each in asked} <= {200, 404, 503}
    assert answers == [200, 200, 202]
    assert took < HELD_UP
