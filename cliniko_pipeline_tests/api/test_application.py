"""Tests of what all routes share: headers, limits of bodies, defects and the OpenAPI description."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from cliniko_pipeline.api.application import create_application
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.api_servers import served
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.schemathesis_runs import assert_answers_conform
from cliniko_pipeline_tests.support.services import ServiceAlone, client, token
from cliniko_pipeline_tests.support.signatures import new_secret, send


@pytest.mark.slow
def test_answers_conform_to_the_description(service: ServiceAlone, tmp_path: Path) -> None:
    """Only routes that need no Dagster get a few requests. e2e/test_service.py tests all routes."""
    text = token(service.database, "admin", organizations=["alpha"], requests_per_minute=100_000)
    options = ["--phases=examples,fuzzing", "--max-examples=3", "--exclude-path-regex=syncs"]
    assert_answers_conform(service.url, tmp_path, text, *options)


def test_answers_have_safe_headers(reader: httpx.Client) -> None:
    for address in ("/v1/organizations", "/v1/nothing", "/healthz"):
        headers = reader.get(address).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


def test_defect_is_500_and_logged_without_its_text(
    reader: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        # The text has two parts, because a traceback shows this line.
        raise ZeroDivisionError("Ja" + "ne Doe, 555-1234")

    monkeypatch.setattr("cliniko_pipeline.api.routes.organizations.scheduling.schedulings", broken)
    with caplog.at_level(logging.DEBUG):
        answer = reader.get("/v1/organizations")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "Jane" not in answer.text + caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_database_that_is_gone_is_503(service: ServiceAlone, tmp_path: Path) -> None:
    settings = load_settings(environment(service.database.url.set(database="gone"), tmp_path))
    with open_runtime(settings) as runtime:
        # The service must start without a database.
        application = create_application(runtime)
        with served(runtime, application) as url, client(url, token(service.database)) as reader:
            ready, *refused = reader.get("/readyz"), reader.get("/v1/organizations"), send(url, "alpha", new_secret())
            assert reader.get("/healthz").status_code == 200
    assert (ready.status_code, ready.json()["database"]) == (503, "unusable")
    for answer in refused:
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert answer.headers["retry-after"] == "10"


def test_body_over_the_limit_is_413(service: ServiceAlone) -> None:
    with service.client("sync") as caller:
        for size, status in ((70_000, 413), (60_000, 422)):
            answer = caller.post("/v1/organizations/alpha/syncs", json={"full": "x" * size})
            assert answer.status_code == status


@pytest.mark.parametrize("scopes", [[], ["sync"]])
@pytest.mark.parametrize("path", ["organizations/alpha/syncs", "webhooks/alpha"])
def test_endless_body_is_not_read_to_its_end(service: ServiceAlone, path: str, scopes: list[str]) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(4096):
            sent += 16 * 1024
            yield b" " * 16 * 1024

    text = token(service.database, *scopes) if scopes else None
    with client(service.url, text) as caller, suppress(httpx.WriteError, httpx.ReadError):
        answer = caller.post(f"/v1/{path}", content=endless(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
    assert sent < 32 * 1024 * 1024, "more than the sockets' buffers hold"
