"""Tests of webhook events over HTTP: signatures, timestamps, secrets, bodies and stored events."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from math import nan
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
import sqlalchemy as sa

from cliniko_pipeline.api.routes import webhooks as webhooks_route
from cliniko_pipeline.api.routes.webhooks import MAX_BODY_BYTES, MAX_DISCARDED_BYTES
from cliniko_pipeline.postgres.operator_tables import api_tokens, organizations, webhooks
from cliniko_pipeline_tests.support.services import ServiceAlone, add_organization
from cliniko_pipeline_tests.support.signatures import CLIENT, add_secret, new_secret, send, signed
from cliniko_pipeline_tests.support.waiting import wait_until

PROBLEM = "application/problem+json"
NO_TIMESTAMPS = ("nan", "inf", "-1", "1e400", "9" * 400, "")
BODY = b'{"type": "appointment.updated"}'
DOCUMENT = Path(__file__).parents[3] / "docs" / "webhooks.md"


class Webhooks:
    """The service. The organization `alpha` has a webhook secret, and `beta` has no secret."""

    def __init__(self, service: ServiceAlone) -> None:
        self.url = service.url
        self.runtime = service.runtime
        self.database = service.database
        self.secret, _ = add_secret(service.runtime, "alpha")

    def send(self, content: Any = None, message_id: str | None = None, **options: Any) -> httpx.Response:
        return send(self.url, "alpha", self.secret, content, message_id, **options)

    def post(self, organization_id: str, body: Any, headers: Any) -> httpx.Response:
        url = f"{self.url}/v1/webhooks/{quote(organization_id, safe='')}"
        return CLIENT.post(url, content=body, headers=headers)

    @contextmanager
    def started_post(self) -> Iterator[socket.socket]:
        """Open a connection, and send the first byte of a body of a hundred bytes."""
        parts = urlsplit(self.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
            connection.sendall(b"POST /v1/webhooks/alpha HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            yield connection

    def events(self) -> list[tuple[str, str, str | None]]:
        with self.database.operator() as connection:
            rows = connection.exec_driver_sql("select organization_id, message_id, type from cliniko.webhook_events")
            return [tuple(row) for row in rows]

    def change(self, function: Any, *args: Any) -> Any:
        with self.database.operator() as connection:
            return function(connection, *args)


@pytest.fixture
def hooks(service: ServiceAlone) -> Webhooks:
    with service.database.operator() as connection:
        for table in ("webhook_events", "webhook_secrets", "api_refusals"):
            connection.exec_driver_sql(f"delete from cliniko.{table}")
    return Webhooks(service)


def test_signed_webhook_is_stored_without_its_body(hooks: Webhooks) -> None:
    answer = hooks.send({"type": "appointment.updated", "patient": {"name": "Jane Doe"}}, "msg_1")
    assert (answer.status_code, answer.json()) == (202, {"accepted": True, "duplicate": False})
    assert hooks.events() == [("alpha", "msg_1", "appointment.updated")]
    with hooks.database.operator() as connection:
        row = connection.exec_driver_sql("select event::text from cliniko.webhook_events as event").scalar_one()
    assert "Doe" not in row


def test_signature_is_found_among_others(hooks: Webhooks) -> None:
    headers = signed(hooks.secret, BODY)
    good = headers["webhook-signature"]
    others = signed(new_secret(), BODY)["webhook-signature"]
    for signature in (f"v1a,abc {good}", f"{good} v1,!!", f"v1 {good}", f", ,, {good}", f"{others} {good}"):
        answer = hooks.post("alpha", BODY, {**headers, "webhook-signature": signature})
        assert answer.status_code == 202, signature


def test_signature_refusal_does_not_reveal_organizations(hooks: Webhooks) -> None:
    """All refusals get the same response, and the stored row contains nothing of the request."""
    wrong = new_secret()
    answers = [
        hooks.post(organization_id, body, headers)
        for organization_id, body, headers in (
            ("alpha", BODY, signed(wrong, BODY)),
            ("alpha", BODY, {**signed(hooks.secret, BODY), "webhook-id": "another"}),
            ("alpha", BODY, {}),
            ("alpha", b"[", signed(wrong, b"[")),
            ("beta", BODY, signed(wrong, BODY)),
            ("unknown", BODY, signed(wrong, BODY)),
            ("unknown", BODY, {}),
            ("a\0b", BODY, signed(wrong, BODY)),
            *(("alpha", BODY, {**signed(hooks.secret, BODY), "webhook-timestamp": at}) for at in NO_TIMESTAMPS),
        )
    ]
    for answer in answers:
        assert (answer.status_code, answer.headers["content-type"]) == (401, PROBLEM)
        answer.headers.pop("date")
    assert len({(answer.text, str(sorted(answer.headers.items()))) for answer in answers}) == 1
    assert hooks.events() == []
    (stored,) = hooks.change(api_tokens.refusals, 10)
    assert stored.attempts == len(answers)
    assert stored.refusal.reason == webhooks_route.NOT_SIGNED
    assert stored.refusal.route == "/v1/webhooks/{organization_id}"
    assert "unknown" not in str(stored)
    assert "appointment" not in str(stored)


def test_timestamp_may_differ_by_five_minutes(hooks: Webhooks) -> None:
    for seconds, status in ((-86400, 401), (-310, 401), (-290, 202), (290, 202), (310, 401)):
        assert hooks.send(later=timedelta(seconds=seconds)).status_code == status, seconds
    assert len(hooks.events()) == 2


def test_secret_is_accepted_until_it_expires_or_is_revoked(hooks: Webhooks) -> None:
    hooks.change(webhooks.add_secret, "alpha", {"encrypted_data": "cannot be decrypted"})
    old, old_id = add_secret(hooks.runtime, "alpha")
    new, new_id = add_secret(hooks.runtime, "alpha")

    def answers() -> list[int]:
        return [send(hooks.url, "alpha", secret).status_code for secret in (old, new, new_secret())]

    assert answers() == [202, 202, 401]
    hooks.change(webhooks.expire_secret, "alpha", old_id, timedelta(hours=1))
    assert answers() == [202, 202, 401]
    hooks.change(webhooks.expire_secret, "alpha", old_id, timedelta(0))
    assert answers() == [401, 202, 401]
    hooks.change(webhooks.revoke_secret, "alpha", new_id)
    assert answers() == [401, 401, 401]


def test_secret_of_removed_organization_is_refused(hooks: Webhooks) -> None:
    add_organization(hooks.database, "removed")
    secret, _ = add_secret(hooks.runtime, "removed")
    assert send(hooks.url, "removed", secret).status_code == 202
    organizations.remove(hooks.database, "removed")
    assert hooks.events() == []
    assert send(hooks.url, "removed", secret).status_code == 401


def test_message_id_is_stored_once_per_organization(hooks: Webhooks) -> None:
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: hooks.send(message_id="m"), range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert sorted(answer.json()["duplicate"] for answer in answers) == [False, *[True] * 19]
    assert len(hooks.events()) == 1
    other, _ = add_secret(hooks.runtime, "beta")
    assert send(hooks.url, "beta", other, message_id="m").json()["duplicate"] is False
    assert send(hooks.url, "beta", hooks.secret).status_code == 401, "another organization's secret"


def test_type_that_is_no_plain_word_is_not_stored(hooks: Webhooks) -> None:
    odd = ["Jane Doe", "Jane", "a@b.org", "a" * 65, 7, nan, ["a"], {"a": "\0"}, "0412", "a.", "\0", "\ud800", "é"]
    assert [hooks.send({"type": name}).status_code for name in odd] == [202] * len(odd)
    assert [event[2] for event in hooks.events()] == [None] * len(odd)


def test_malformed_message_id_or_body_is_400(hooks: Webhooks) -> None:
    answers = [
        hooks.post(organization_id, BODY, {**signed(hooks.secret, BODY), "webhook-id": message_id.encode("latin-1")})
        for organization_id in ("alpha", "unknown")
        for message_id in ("a" * 257, "a b", "a\tb", "é")
    ]
    for body in (b"", b"[]", b"[" * 100_000, b"9" * 10_000, b"null", b'{"a":1}x'):
        answers.append(hooks.post("alpha", body, signed(hooks.secret, body)))
        assert "JSON object" in answers[-1].json()["detail"]
    assert {(answer.status_code, answer.headers["content-type"]) for answer in answers} == {(400, PROBLEM)}
    assert hooks.events() == []
    assert hooks.send(message_id="a" * 256).status_code == 202


@pytest.mark.parametrize("is_chunked", [False, True])
def test_body_over_the_limit_is_413(hooks: Webhooks, is_chunked: bool) -> None:
    def answer(size: int) -> httpx.Response:
        body = b'{"a":"' + b"x" * (size - 8) + b'"}'
        content = iter([body[:1000], body[1000:]]) if is_chunked else body
        return hooks.post("alpha", content, signed(hooks.secret, body))

    assert answer(MAX_BODY_BYTES).status_code == 202
    too_large = answer(MAX_BODY_BYTES + 1)
    assert (too_large.status_code, too_large.headers["content-type"]) == (413, PROBLEM)
    assert answer(MAX_DISCARDED_BYTES).status_code == 413
    assert len(hooks.events()) == 1


def test_body_that_never_ends_is_408(hooks: Webhooks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cliniko_pipeline.api.routes.webhooks.BODY_SECONDS", 0.2)
    with hooks.started_post() as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_client_that_disconnects_is_no_defect(
    hooks: Webhooks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read, steps = webhooks_route._read_limited, []

    async def recorded_body(request: Any) -> bytes:
        steps.append("started")
        try:
            return await read(request)
        finally:
            steps.append("ended")

    monkeypatch.setattr(webhooks_route, "_read_limited", recorded_body)
    with hooks.started_post():
        wait_until(lambda: steps == ["started"], "the service does not read the body")
    wait_until(lambda: steps == ["started", "ended"], "the service still reads the body")
    assert hooks.send().status_code == 202
    assert "defect" not in caplog.text


def test_accepted_webhook_costs_two_statements(hooks: Webhooks) -> None:
    statements: list[str] = []
    sa.event.listen(hooks.database._engine, "before_cursor_execute", lambda *event: statements.append(event[2]))
    assert hooks.send().status_code == 202
    select, insert = statements
    assert "from cliniko.webhook_secrets" in select
    assert "insert" in insert


def test_description_names_every_answer_and_header(hooks: Webhooks) -> None:
    route = httpx.get(f"{hooks.url}/openapi.json").json()["paths"]["/v1/webhooks/{organization_id}"]["post"]
    assert set(route["responses"]) == {"202", "400", "401", "408", "413", "422", "503"}
    assert "security" not in route
    names = {"organization_id", "webhook-id", "webhook-timestamp", "webhook-signature"}
    assert {header["name"] for header in route["parameters"] if "examples" in json.dumps(header)} == names
    assert route["requestBody"]["content"]["application/json"]["examples"]


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_documented_code_is_accepted(hooks: Webhooks, language: str) -> None:
    _, _, code = DOCUMENT.read_text(encoding="utf-8").partition(f"```{language}\n")
    code = code.partition("```")[0].replace("https://HOST", hooks.url).replace("/ORG", "/alpha")
    assert code.count("whsec_...") == 1
    code = code.replace("whsec_...", hooks.secret)
    if language == "python":
        command = [sys.executable, "-c", code]
    elif shutil.which("node") is None:
        pytest.skip("no JavaScript here: install Debian's package nodejs")
    else:
        # Automation tools run such code inside an async function.
        command = ["node", "--eval", f"(async () => {{ {code} }})()"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert [event[2] for event in hooks.events()] == ["appointment.updated"]
