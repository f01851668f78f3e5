"""Tests of requests while Dagster accepts connections and does not respond."""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from cliniko_pipeline.api import dagster_runs
from cliniko_pipeline.api import gate as authentication
from cliniko_pipeline.api.application import create_application
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.api_servers import served
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.services import ServiceAlone, client, token
from cliniko_pipeline_tests.support.signatures import add_secret, send
from cliniko_pipeline_tests.support.waiting import wait_until

NEED_DAGSTER = (
    ("GET", "/v1/syncs/{}"),
    ("GET", "/v1/syncs/{}/events"),
    ("DELETE", "/v1/syncs/{}"),
    ("GET", "/v1/organizations/alpha/syncs"),
    ("POST", "/v1/organizations/alpha/syncs"),
)
REQUESTS = 60
"""Number of requests, which is larger than the number of the service's threads."""


def test_requests_waiting_for_dagster_do_not_block_others(
    service: ServiceAlone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dagster_runs, "TIMEOUT_SECONDS", 600)
    monkeypatch.setattr(authentication, "MAX_FOLLOWERS", REQUESTS)
    # The server accepts no connection, so all connections wait in its backlog.
    silent = socket.create_server(("127.0.0.1", 0), backlog=200)
    address = f"http://127.0.0.1:{silent.getsockname()[1]}"
    environ = environment(service.database.url, tmp_path) | {"API_DAGSTER_URL": address}
    waiting = token(service.database, "read", "sync", organizations=["alpha"], requests_per_minute=10 * REQUESTS)
    with open_runtime(load_settings(environ)) as runtime:
        secret, _ = add_secret(runtime, "beta")
        application = create_application(runtime)
        slots = application.state.dagster.slots
        with (
            served(runtime, application) as url,
            client(url, waiting) as patient,
            client(url, token(service.database, organizations=["beta"])) as reader,
            ThreadPoolExecutor(REQUESTS) as threads,
            silent,
        ):
            sent = [
                threads.submit(patient.request, method, path.format(uuid4()))
                for method, path in NEED_DAGSTER * (REQUESTS // len(NEED_DAGSTER))
            ]
            wait_until(
                lambda: slots.statistics().tasks_waiting == REQUESTS - dagster_runs.MAX_CONCURRENT_REQUESTS,
                lambda: f"only {slots.statistics().tasks_waiting} requests wait for Dagster",
            )
            answers = [
                httpx.get(f"{url}/healthz", trust_env=False, timeout=60).status_code,
                reader.get("/v1/organizations/beta/active-patients").status_code,
                send(url, "beta", secret).status_code,
            ]
            assert not any(request.done() for request in sent)
            silent.close()
            assert {request.result().status_code for request in sent} <= {200, 404, 503}
    assert answers == [200, 200, 202]
