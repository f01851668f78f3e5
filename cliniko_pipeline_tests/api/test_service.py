"""The HTTP service with a real Dagster behind it: who may do what, what comes of a sync, and whether every answer is as
the description says.
"""

import json
import os
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.api.application import create_application
from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline_tests.support.databases import created_database
from cliniko_pipeline_tests.support.processes import marks_held_by, workers_of
from cliniko_pipeline_tests.support.properties import examples
from cliniko_pipeline_tests.support.services import Service, client, opened_service, token
from cliniko_pipeline_tests.support.waiting import wait_until

OPEN, READ, SYNC, ADMIN, EITHER = "open", "read", "sync", "admin", "read or sync"
SIGNED = "signed"
"""No token opens it, but a signature (test_webhooks): to everybody else it is closed, whoever's it is."""
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
    ("GET", "/v1/organizations/{organization_id}/syncs"): EITHER,
    ("POST", "/v1/organizations/{organization_id}/syncs"): SYNC,
    ("GET", "/v1/syncs/{sync_id}"): EITHER,
    ("GET", "/v1/syncs/{sync_id}/events"): EITHER,
    ("DELETE", "/v1/syncs/{sync_id}"): SYNC,
    ("POST", "/v1/webhooks/{organization_id}"): SIGNED,
}
"""Every route, and what it takes. One that is missing here fails the test."""

ENDED = {"succeeded", "failed", "cancelled"}
A_RUN = 40
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,missing_required_header,unsupported_method,"
    "allow_header_conformance,ignored_auth"
)


@pytest.fixture(scope="module")
def service(server_url: URL, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with (
        created_database(server_url, template) as url,
        opened_service(url, tmp_path_factory.mktemp("service"), ["alpha", "beta"]) as opened,
    ):
        yield opened


@pytest.fixture(autouse=True)
def no_faults(service: Service) -> Iterator[None]:
    yield
    service.clinics.sandbox.faults = Faults()


def test_every_route_lets_in_whom_it_should_and_nobody_else(service: Service) -> None:
    with service.client(SYNC) as all_organizations:
        theirs = _synced(all_organizations, "beta")
    mine = service.client(ADMIN, organizations=["alpha"])
    revoked = token(service.database, ADMIN)
    with service.database.operator() as connection:
        connection.exec_driver_sql(
            "update cliniko.api_tokens set revoked_at = now() where id = %s", (revoked.split("_")[1],)
        )
    refused = {
        "no token": None,
        "a wrong one": token(service.database, ADMIN)[:-1] + "~",
        "one that looks right": f"clinikopipeline_{'0' * 12}_{'A' * 43}",
        "an expired one": token(service.database, ADMIN, expires_at=datetime.now(UTC) - timedelta(seconds=1)),
        "a revoked one": revoked,
    }
    too_small = {READ: [SYNC], SYNC: [READ], ADMIN: [READ, SYNC]}
    described = create_application(_runtime_of(service)).openapi()["paths"]
    assert {(method.upper(), path) for path in described for method in described[path]} == set(ROUTES)
    ids = {"organization_id": "beta", "contact_id": str(uuid4()), "sync_id": theirs["id"]}
    for (method, path), scope in ROUTES.items():
        address = path.format(**ids)
        for name, text in refused.items():
            with client(service.url, text) as whoever:
                answer = whoever.request(method, address)
            assert answer.status_code == (200 if scope == OPEN else 401), (method, path, name)
            if scope != OPEN:
                assert answer.headers["www-authenticate"] == ("Webhook-Signature" if scope == SIGNED else "Bearer")
                assert answer.headers["content-type"] == "application/problem+json"
        for small in too_small.get(scope, []):
            with service.client(small) as whoever:
                assert whoever.request(method, address).status_code == 403, (method, path, small)
        if "{" in path:
            unknown = path.format(organization_id="nobody", contact_id=uuid4(), sync_id=uuid4())
            others, nobodys = mine.request(method, address), mine.request(method, unknown)
            assert others.status_code == (401 if scope == SIGNED else 404), (method, path)
            assert (others.content, _names(others)) == (nobodys.content, _names(nobodys)), (method, path)
    mine.close()
    _assert_refusals_are_noted(service)


def _names(answer: httpx.Response) -> set[str]:
    return set(answer.headers)


def _runtime_of(service: Service) -> Any:
    class _Runtime:
        settings = type("_Settings", (), {"dagster_url": service.url, "oidc_issuer": None})
        database = service.database

    return _Runtime()


def _assert_refusals_are_noted(service: Service) -> None:
    with service.database.operator() as connection:
        noted = connection.exec_driver_sql("select distinct reason from cliniko.api_refusals").scalars().all()
        texts = connection.exec_driver_sql(
            "select string_agg(r::text, ' ') from cliniko.api_refusals as r"
        ).scalar_one()
    assert set(noted) >= {
        "no token",
        "unknown token",
        "expired token",
        "revoked token",
        "without the scope admin",
        "another organization",
    }
    assert "clinikopipeline" not in texts


def test_a_token_sees_its_own_organizations_only(service: Service) -> None:
    with service.client(READ, organizations=["alpha"]) as whoever:
        assert [each["id"] for each in whoever.get("/v1/organizations").json()["items"]] == ["alpha"]
    with service.client(ADMIN, organizations=["alpha"]) as whoever:
        metrics = whoever.get("/metrics").text
    assert 'cliniko_pending_webhooks{organization="alpha"} 0.0' in metrics
    assert 'cliniko_failures_in_a_row{organization="alpha"}' in metrics
    assert "beta" not in metrics


def test_a_sync_is_launched_once_followed_to_its_end_and_tells_what_came_of_it(service: Service) -> None:
    service.clinics.sandbox.faults = Faults(latency_ms=900)
    with service.client(SYNC, READ, organizations=["alpha"]) as whoever:
        with ThreadPoolExecutor(8) as executor:
            requested = list(executor.map(lambda _: _requested(whoever, "alpha", full=True), range(8)))
        (sync_id,) = {each["id"] for each in requested}
        assert sorted(each["is_new"] for each in requested) == [False] * 7 + [True]
        events = list(_events(whoever, sync_id))
        assert [name for name, _ in events[:-1]] == ["sync"] * (len(events) - 1)
        assert events[-1][0] == "ended"
        seen = [data["status"] for _, data in events]
        assert seen == sorted(seen, key=["queued", "running", "succeeded"].index)
        assert {"running", "succeeded"} <= set(seen)
        assert any(data["progress"] for _, data in events)
        ended = whoever.get(f"/v1/syncs/{sync_id}").json()
        assert ended == events[-1][1]
        assert ended["full"] is True
        assert ended["error"] is None
        assert ended["requests"] >= 4
        assert [each["status"] for each in ended["tables"]] == ["succeeded"] * 4
        listed = whoever.get("/v1/organizations/alpha/syncs").json()["items"]
        assert [each["id"] for each in listed].count(sync_id) == 1
        assert whoever.get("/v1/organizations/alpha").json()["last_sync_id"] == listed[0]["id"]
        trend = whoever.get("/v1/organizations/alpha/active-patients-trend").json()["items"]
        assert [each["day"] for each in trend] == [datetime.now(UTC).date().isoformat()]


def test_the_same_key_leads_to_the_same_sync_and_another_request_with_it_is_refused(service: Service) -> None:
    with service.client(SYNC) as whoever, service.client(SYNC) as somebody_else:
        first = _requested(whoever, "alpha", key="my-key")
        _ended(whoever, first["id"])
        again = _requested(whoever, "alpha", key="my-key")
        assert (again["id"], again["is_new"]) == (first["id"], False)
        other = whoever.post(
            "/v1/organizations/alpha/syncs", json={"full": True}, headers={"Idempotency-Key": "my-key"}
        )
        assert other.status_code == 422
        theirs = _requested(somebody_else, "alpha", key="my-key")
        assert theirs["id"] != first["id"]
        _ended(whoever, theirs["id"])


def test_a_sync_is_cancelled_and_one_that_fails_says_why(service: Service) -> None:
    service.clinics.sandbox.faults = Faults(latency_ms=1500)
    with service.client(SYNC, READ) as whoever:
        running = _requested(whoever, "alpha", full=True)["id"]
        wait_until(lambda: whoever.get(f"/v1/syncs/{running}").json()["status"] == "running", "it does not run", A_RUN)
        answer = whoever.delete(f"/v1/syncs/{running}")
        assert answer.status_code == 202
        assert _ended(whoever, running)["status"] == "cancelled"
        assert whoever.delete(f"/v1/syncs/{running}").json()["status"] == "cancelled"
        service.clinics.sandbox.faults = Faults()
        account = service.clinics.sandbox.accounts["alpha"]
        account.revoked = True
        failed = _ended(whoever, _requested(whoever, "alpha")["id"])
        account.revoked = False
        assert failed["status"] == "failed"
        assert "API key" in failed["error"]
        assert account.api_key not in json.dumps(failed)
        problems = whoever.get("/v1/organizations/alpha").json()["problems"]
        assert any("paused" in each for each in problems)
        with service.database.operator() as connection:
            connection.exec_driver_sql("update cliniko.scheduling set paused_at = null, pause_reason = null")


def test_a_sync_whose_process_is_killed_ends_as_failed(service: Service) -> None:
    service.clinics.sandbox.faults = Faults(latency_ms=1500)
    with service.client(SYNC) as whoever:
        sync_id = _requested(whoever, "alpha", full=True)["id"]
        wait_until(lambda: whoever.get(f"/v1/syncs/{sync_id}").json()["status"] == "running", "it does not run", A_RUN)
        workers: list[int] = []
        wait_until(lambda: workers.extend(_workers(service, sync_id)) or workers, "nobody runs it", A_RUN)
        os.kill(workers[0], signal.SIGKILL)
        ended = _ended(whoever, sync_id)
    assert ended["status"] == "failed"
    assert ended["error"]


def _workers(service: Service, sync_id: str) -> list[int]:
    """The process that runs the sync, once it does: it holds the run's mark."""
    return [number for number in workers_of(service.home) if sync_id in marks_held_by(number)]


@pytest.mark.parametrize("with_token", [True, False], ids=["with a token", "without a token"])
def test_no_answer_is_a_server_error_or_outside_of_the_description(
    service: Service, tmp_path: Path, with_token: bool
) -> None:
    command = [Path(sysconfig.get_path("scripts")) / "schemathesis", "run", f"{service.url}/openapi.json"]
    options = ["--checks", CHECKS if with_token else CHECKS.replace(",negative_data_rejection", "")]
    # Without a token there is little to be found behind the gate.
    phases = "examples,coverage,fuzzing" if with_token else "examples,coverage"
    options += ["--max-examples", str(examples(8)), "--phases", phases]
    options += ["--continue-on-failure", "--request-timeout", "60", "--seed", "1"]
    if with_token:
        text = token(service.database, ADMIN, organizations=["alpha"], requests_per_minute=100_000)
        options += ["--header", f"Authorization: Bearer {text}"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def _requested(whoever: httpx.Client, organization_id: str, *, full: bool = False, key: str | None = None) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    answer = whoever.post(f"/v1/organizations/{organization_id}/syncs", json={"full": full}, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.json()


def _ended(whoever: httpx.Client, sync_id: str) -> Any:
    found: dict[str, Any] = {}

    def has_ended() -> bool:
        found.update(whoever.get(f"/v1/syncs/{sync_id}").json())
        return found["status"] in ENDED

    try:
        wait_until(has_ended, "the sync does not end", A_RUN)
    except TimeoutError as error:
        raise TimeoutError(f"{error}: {found}") from None
    return found


def _synced(whoever: httpx.Client, organization_id: str) -> Any:
    return _ended(whoever, _requested(whoever, organization_id)["id"])


def _events(whoever: httpx.Client, sync_id: str) -> Iterator[tuple[str, Any]]:
    with whoever.stream("GET", f"/v1/syncs/{sync_id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in answer.iter_lines():
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                yield name, json.loads(value)
