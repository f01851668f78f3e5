"""Tests of the HTTP service with a real Dagster: scopes of routes, whole syncs, and a tour of the page."""

import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from playwright.sync_api import expect
from sqlalchemy.engine import URL

from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline_tests.support.accounts import add_appointment, held
from cliniko_pipeline_tests.support.browsers import opened_ui
from cliniko_pipeline_tests.support.databases import created_database
from cliniko_pipeline_tests.support.processes import workers_of
from cliniko_pipeline_tests.support.properties import examples
from cliniko_pipeline_tests.support.schemathesis_runs import assert_answers_conform
from cliniko_pipeline_tests.support.services import (
    ServiceWithDagster,
    client,
    events,
    opened_service_with_dagster,
    request_sync,
    token,
    wait_for_status,
)
from cliniko_pipeline_tests.support.waiting import wait_until

OPEN, READ, SYNC, ADMIN, READ_OR_SYNC = "open", "read", "sync", "admin", "read or sync"
SIGNED = "signed"
"""The route needs a signature instead of a token, which api/routes/test_webhooks.py tests."""
ROUTES = {
    ("GET", "/healthz"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("GET", "/metrics"): ADMIN,
    ("GET", "/v1/organizations"): READ,
    ("GET", "/v1/organizations/{organization_id}"): READ,
    ("GET", "/v1/organizations/{organization_id}/people-without-contact"): READ,
    ("GET", "/v1/organizations/{organization_id}/active-patients"): READ,
    ("GET", "/v1/organizations/{organization_id}/active-patients/{contact_id}"): READ,
    ("GET", "/v1/organizations/{organization_id}/active-patients-trend"): READ,
    ("GET", "/v1/organizations/{organization_id}/syncs"): READ_OR_SYNC,
    ("POST", "/v1/organizations/{organization_id}/syncs"): SYNC,
    ("GET", "/v1/syncs/{sync_id}"): READ_OR_SYNC,
    ("GET", "/v1/syncs/{sync_id}/events"): READ_OR_SYNC,
    ("DELETE", "/v1/syncs/{sync_id}"): SYNC,
    ("POST", "/v1/webhooks/{organization_id}"): SIGNED,
}
"""The scope of every route. A route that is missing here fails the test."""
TOO_SMALL = {READ: [SYNC], SYNC: [READ], ADMIN: [READ, SYNC]}
STATUSES = ["queued", "running", "succeeded"]


@pytest.fixture(scope="module")
def service(server_url: URL, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceWithDagster]:
    with (
        created_database(server_url, template) as url,
        opened_service_with_dagster(url, tmp_path_factory.mktemp("service"), ["alpha", "beta", "gamma"]) as opened,
    ):
        yield opened


@pytest.fixture(autouse=True)
def no_faults(service: ServiceWithDagster) -> Iterator[None]:
    yield
    service.clinics.sandbox.faults = Faults()


def test_dagster_ui_of_the_command_is_guarded(service: ServiceWithDagster) -> None:
    """orchestration/test_webserver.py tests all rules of the guard."""
    query = 'mutation { deletePipelineRun(runId: "none") { __typename } }'
    with client(service.dagster_url) as browser:
        assert browser.get("/graphql", params={"query": query}).status_code == 405
        assert browser.get("/server_info", headers={"Host": "evil.example"}).status_code == 421


def test_sync_if_changed_is_not_launched_without_a_change(service: ServiceWithDagster) -> None:
    path = "/v1/organizations/gamma/syncs"
    with service.client("read", "sync") as caller:
        launched = caller.post(path, json={"if_changed": True})
        assert launched.status_code == 202, "it was never synced"
        wait_for_status(caller, launched.json()["id"], "succeeded")
        unchanged = caller.post(path, json={"if_changed": True})
        assert unchanged.status_code == 200
        verified_at = unchanged.json()["verified_at"]
        assert unchanged.json() == {"organization_id": "gamma", "verified_at": verified_at}
        assert len(caller.get(path).json()["items"]) == 1
        found = caller.get("/v1/organizations/gamma").json()
        assert datetime.fromisoformat(found["verified_at"]) == datetime.fromisoformat(verified_at)
        assert found["last_success_at"] < found["verified_at"]
        assert caller.post(path, json={"if_changed": True, "full": True}).status_code == 422


def test_routes_admit_their_scope_only(service: ServiceWithDagster) -> None:
    """Every route refuses invalid tokens, tokens without the route's scope, and other organizations."""
    described = httpx.get(f"{service.url}/openapi.json", trust_env=False).json()["paths"]
    assert {(method.upper(), path) for path in described for method in described[path]} == set(ROUTES)
    with service.client(SYNC) as caller:
        ids = {"organization_id": "beta", "contact_id": str(uuid4()), "sync_id": request_sync(caller, "beta")["id"]}
    unknown = {"organization_id": "nobody", "contact_id": str(uuid4()), "sync_id": str(uuid4())}
    invalid = _invalid_tokens(service)
    with service.client(ADMIN, organizations=["alpha"]) as another:
        for (method, path), scope in ROUTES.items():
            address = path.format(**ids)
            for text in invalid:
                with client(service.url, text) as caller:
                    answer = caller.request(method, address)
                assert answer.status_code == (200 if scope == OPEN else 401), (method, address, text)
                if scope != OPEN:
                    challenge = "Webhook-Signature" if scope == SIGNED else "Bearer"
                    assert answer.headers["www-authenticate"] == challenge
                    assert answer.headers["content-type"] == "application/problem+json"
            for small in TOO_SMALL.get(scope, []):
                with service.client(small) as caller:
                    assert caller.request(method, address).status_code == 403, (method, path, small)
            if "{" in path:
                refused, missing = (another.request(method, path.format(**values)) for values in (ids, unknown))
                assert refused.status_code == (401 if scope == SIGNED else 404), (method, path)
                assert (refused.content, set(refused.headers)) == (missing.content, set(missing.headers)), path
    _assert_refusals_are_stored(service)


def _invalid_tokens(service: ServiceWithDagster) -> list[str | None]:
    revoked = token(service.database, ADMIN)
    with service.database.operator() as connection:
        connection.exec_driver_sql(
            "update cliniko.api_tokens set revoked_at = now() where id = %s", (revoked.split("_")[1],)
        )
    expired = token(service.database, ADMIN, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    wrong = token(service.database, ADMIN)[:-1] + "~"
    return [None, wrong, f"clinikopipeline_{'0' * 12}_{'A' * 43}", expired, revoked]


def _assert_refusals_are_stored(service: ServiceWithDagster) -> None:
    with service.database.operator() as connection:
        notes = connection.exec_driver_sql("select reason, r::text from cliniko.api_refusals as r").all()
    tokens = {"no token", "unknown token", "expired token", "revoked token"}
    assert {reason for reason, _ in notes} >= {*tokens, "without the scope admin", "another organization"}
    assert not any("clinikopipeline" in text for _, text in notes)


def test_sync_is_launched_once_and_followed_to_its_end(service: ServiceWithDagster) -> None:
    sandbox = service.clinics.sandbox
    # The page before the held page takes longer than a second, because progress is stored at most once a second.
    sandbox.faults = Faults(latency_ms=1100, accounts=("alpha",))
    with (
        service.client(SYNC, READ, organizations=["alpha"]) as caller,
        held(sandbox.accounts["alpha"], after=2) as hold,
        ThreadPoolExecutor(8) as threads,
    ):
        requested = list(threads.map(lambda _: request_sync(caller, "alpha", full=True), range(8)))
        (sync_id,) = {sync["id"] for sync in requested}
        assert sorted(sync["is_new"] for sync in requested) == [False] * 7 + [True]
        seen: list[tuple[str, Any]] = []
        for event in events(caller, sync_id):
            seen.append(event)
            if event[1]["progress"]:
                sandbox.faults = Faults()
                hold.release()
        assert [name for name, _ in seen] == [*["sync"] * (len(seen) - 1), "ended"]
        statuses = [sync["status"] for _, sync in seen]
        assert statuses == sorted(statuses, key=STATUSES.index)
        assert {"running", "succeeded"} <= set(statuses)
        assert any(sync["progress"] for _, sync in seen)
        sync = caller.get(f"/v1/syncs/{sync_id}").json()
        assert sync == seen[-1][1]
        assert (sync["full"], sync["error"]) == (True, None)
        assert sync["requests"] >= 4
        assert [table["status"] for table in sync["tables"]] == ["succeeded"] * 4
        listed = caller.get("/v1/organizations/alpha/syncs").json()["items"]
        assert [row["id"] for row in listed].count(sync_id) == 1
        assert caller.get("/v1/organizations/alpha").json()["last_sync_id"] == listed[0]["id"]
        trend = caller.get("/v1/organizations/alpha/active-patients-trend").json()["items"]
        assert [row["day"] for row in trend] == [datetime.now(UTC).date().isoformat()]


def test_failed_sync_says_why_without_the_key(service: ServiceWithDagster) -> None:
    account = service.clinics.sandbox.accounts["gamma"]
    account.revoked = True
    with service.client(SYNC, READ) as caller:
        failed = wait_for_status(caller, request_sync(caller, "gamma")["id"])
        problems = caller.get("/v1/organizations/gamma").json()["problems"]
    assert failed["status"] == "failed"
    assert "API key" in failed["error"]
    assert account.api_key not in json.dumps(failed)
    assert any("only if Cliniko refuses a later attempt" in problem for problem in problems)


def test_page_in_a_browser_from_login_to_an_ended_sync(service: ServiceWithDagster, tmp_path: Path) -> None:
    """This is a short tour. The tests in e2e/page test every part of the page."""
    add_appointment(service.clinics.sandbox.accounts["beta"], 1)
    with opened_ui(service.url, tmp_path) as ui:
        page = ui.page
        ui.open("/")
        page.get_by_label("Token").fill("clinikopipeline_wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("This token is invalid")
        refused, ui.complaints = ui.complaints, []
        assert refused
        assert all("401" in complaint for complaint in refused)
        page.get_by_label("Token").fill(token(service.database, READ, SYNC, organizations=["beta"]))
        page.get_by_role("button", name="Log in").click()
        ui.see_text("Organizations")
        page.get_by_role("link", name="Clinic beta").click()
        ui.see(page.get_by_role("heading", level=1, name="Clinic beta"))
        page.get_by_role("button", name="Sync now").click()
        ui.see(page.get_by_role("heading", name="The sync has succeeded"))
        expect(page.locator(".sync")).to_contain_text("1 active patient")
        expect(page.get_by_role("definition").first).to_have_text("1")
        expect(page.get_by_role("link", name="Run in Dagster")).to_have_attribute(
            "href", re.compile(rf"^{re.escape(service.dagster_url)}/runs/[0-9a-f-]{{36}}$")
        )
        # The console has no errors, and no request went to another host.
        assert ui.complaints == []


@pytest.mark.slow
def test_idempotency_key_leads_to_the_same_sync(service: ServiceWithDagster) -> None:
    with service.client(SYNC) as caller, service.client(SYNC) as another:
        first = request_sync(caller, "alpha", key="my-key")
        wait_for_status(caller, first["id"])
        repeated = request_sync(caller, "alpha", key="my-key")
        assert (repeated["id"], repeated["is_new"]) == (first["id"], False)
        headers = {"Idempotency-Key": "my-key"}
        different = caller.post("/v1/organizations/alpha/syncs", json={"full": True}, headers=headers)
        assert different.status_code == 422
        others = request_sync(another, "alpha", key="my-key")
        assert others["id"] != first["id"]
        wait_for_status(another, others["id"])


@pytest.mark.slow
def test_running_sync_is_cancelled(service: ServiceWithDagster) -> None:
    with service.client(SYNC) as caller:
        with held(service.clinics.sandbox.accounts["alpha"]) as hold:
            sync_id = request_sync(caller, "alpha", full=True)["id"]
            wait_until(hold.reached.is_set, "the sync reads nothing")
            wait_for_status(caller, sync_id, "running")
            assert caller.delete(f"/v1/syncs/{sync_id}").status_code == 202
        assert wait_for_status(caller, sync_id)["status"] == "cancelled"
        assert caller.delete(f"/v1/syncs/{sync_id}").json()["status"] == "cancelled"


@pytest.mark.slow
def test_sync_whose_process_is_killed_has_failed(service: ServiceWithDagster) -> None:
    with service.client(SYNC) as caller, held(service.clinics.sandbox.accounts["alpha"]) as hold:
        sync_id = request_sync(caller, "alpha", full=True)["id"]
        wait_until(hold.reached.is_set, "the sync reads nothing")
        # The heartbeat of the run has the id of its process.
        (worker,) = (
            number for number in workers_of(service.home) if sync_id in service.clinics.runs_of_process(number)
        )
        os.kill(worker, signal.SIGKILL)
        killed = wait_for_status(caller, sync_id)
    assert killed["status"] == "failed"
    assert killed["error"]


@pytest.mark.slow
@pytest.mark.parametrize("has_token", [True, False])
def test_answers_conform_to_the_description(service: ServiceWithDagster, tmp_path: Path, has_token: bool) -> None:
    text = token(service.database, ADMIN, organizations=["alpha"], requests_per_minute=100_000) if has_token else None
    # Without a token, all responses are refusals.
    phases = "examples,coverage,fuzzing" if has_token else "examples,coverage"
    assert_answers_conform(service.url, tmp_path, text, f"--phases={phases}", f"--max-examples={examples(8, 20)}")
