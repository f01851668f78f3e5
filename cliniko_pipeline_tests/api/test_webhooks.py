"""Webhooks to the service, over real HTTP: who is believed, what is kept, and what everybody else is answered."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import URL

from cliniko_pipeline.api.application import create_application
from cliniko_pipeline.api.webhooks import LARGEST_BODY, READ_ON
from cliniko_pipeline.postgres import api_tokens, organizations, webhooks
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.api_servers import served
from cliniko_pipeline_tests.support.databases import created_database
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.properties import examples
from cliniko_pipeline_tests.support.signatures import CLIENT, add_secret, new_secret, send, signed

PROBLEM = "application/problem+json"
BODY = b'{"type": "appointment.updated"}'


class Service:
    """The service, and two organizations: `clinic` has a secret, `silent` none."""

    def __init__(self, runtime: Runtime, url: str) -> None:
        self.runtime = runtime
        self.url = url
        with runtime.database.operator() as connection:
            for name in ("clinic", "silent"):
                organizations.save(connection, name, name, {"encrypted_data": "x"}, validated=False)
        self.secret, self.secret_id = add_secret(runtime, "clinic")

    def post(self, organization_id: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        url = f"{self.url}/v1/webhooks/{quote(organization_id, safe='')}"
        return CLIENT.post(url, content=body, headers=headers)

    def events(self) -> list[tuple[str, str, str | None]]:
        with self.runtime.database.operator() as connection:
            rows = connection.execute(
                sa.text("select organization_id, message_id, type from cliniko.webhook_events order by received_at")
            )
            return [tuple(row) for row in rows]

    def forget(self) -> None:
        with self.runtime.database.operator() as connection:
            connection.execute(sa.text("delete from cliniko.webhook_events"))


@pytest.fixture(scope="module")
def module_service(server_url: URL, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home: Path = tmp_path_factory.mktemp("home")
    with (
        created_database(server_url, template) as database_url,
        open_runtime(load_settings(environment(database_url, home))) as runtime,
        served(runtime) as url,
    ):
        yield Service(runtime, url)


@pytest.fixture
def service(module_service: Service) -> Service:
    module_service.forget()
    return module_service


def test_a_signed_webhook_is_kept_without_its_body(service: Service) -> None:
    content = {"type": "appointment.updated", "patient": {"name": "Jane Doe"}}
    answer = send(service.url, "clinic", service.secret, content, "msg_1")
    assert (answer.status_code, answer.json()) == (202, {"accepted": True, "duplicate": False})
    assert service.events() == [("clinic", "msg_1", "appointment.updated")]
    with service.runtime.database.operator() as connection:
        row = connection.execute(sa.text("select event::text from cliniko.webhook_events as event")).scalar_one()
    assert "Doe" not in row


@pytest.mark.parametrize(
    "odd", ["Jane Doe", "Jane", "jane@example.org", "a" * 65, 7, None, ["a"], {}, "0412 345 678", "a.", "\0", "é"]
)
def test_a_type_that_may_be_anything_is_not_kept(service: Service, odd: Any) -> None:
    assert send(service.url, "clinic", service.secret, {"type": odd}).status_code == 202
    assert [event[2] for event in service.events()] == [None]


def test_the_same_message_again_is_answered_alike_and_kept_once(service: Service) -> None:
    answers = [send(service.url, "clinic", service.secret, message_id="msg_1") for _ in range(2)]
    assert [(each.status_code, each.json()["duplicate"]) for each in answers] == [(202, False), (202, True)]
    assert len(service.events()) == 1


def test_of_the_same_message_twenty_times_at_once_one_is_new(service: Service) -> None:
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: send(service.url, "clinic", service.secret, message_id="m"), range(20)))
    assert {each.status_code for each in answers} == {202}
    assert sorted(each.json()["duplicate"] for each in answers) == [False, *[True] * 19]
    assert len(service.events()) == 1


def test_the_id_of_one_organizations_message_is_no_duplicate_of_anothers(service: Service) -> None:
    other, other_id = add_secret(service.runtime, "silent")
    try:
        answers = [
            send(service.url, name, secret, message_id="m")
            for name, secret in (("clinic", service.secret), ("silent", other))
        ]
        assert [each.json()["duplicate"] for each in answers] == [False, False]
        assert send(service.url, "silent", service.secret).status_code == 401, "another organization's secret"
    finally:
        with service.runtime.database.operator() as connection:
            webhooks.revoke_secret(connection, "silent", other_id)


@pytest.mark.parametrize("seconds", [-290, 290])
def test_clocks_may_differ_by_less_than_five_minutes(service: Service, seconds: int) -> None:
    assert send(service.url, "clinic", service.secret, later=timedelta(seconds=seconds)).status_code == 202


@pytest.mark.parametrize("seconds", [-310, 310, -86400])
def test_an_old_message_or_one_of_the_future_is_refused(service: Service, seconds: int) -> None:
    assert send(service.url, "clinic", service.secret, later=timedelta(seconds=seconds)).status_code == 401
    assert service.events() == []


def test_while_secrets_change_both_are_good_until_the_old_one_is_revoked(service: Service) -> None:
    old, old_id = add_secret(service.runtime, "clinic")
    new, new_id = add_secret(service.runtime, "clinic")

    def answers() -> list[int]:
        return [send(service.url, "clinic", secret).status_code for secret in (old, new)]

    assert answers() == [202, 202]
    with service.runtime.database.operator() as connection:
        webhooks.expire_secret(connection, "clinic", old_id, timedelta(hours=1))
    assert answers() == [202, 202]
    with service.runtime.database.operator() as connection:
        webhooks.expire_secret(connection, "clinic", old_id, timedelta(0))
    assert answers() == [401, 202]
    with service.runtime.database.operator() as connection:
        webhooks.revoke_secret(connection, "clinic", old_id)
        webhooks.revoke_secret(connection, "clinic", new_id)
    assert answers() == [401, 401]


def test_a_good_signature_counts_among_others_and_of_other_kinds(service: Service) -> None:
    headers = signed(service.secret, BODY)
    good = headers["webhook-signature"]
    for among in (
        f"v1a,abc {good}",
        f"{good} v1,!!",
        f"v1 {good}",
        f", ,, {good}",
        f"{signed(new_secret(), BODY)['webhook-signature']} {good}",
    ):
        assert service.post("clinic", BODY, {**headers, "webhook-signature": among}).status_code == 202, among


def test_a_secret_that_no_key_opens_any_more_does_not_keep_the_others_from_being_tried(service: Service) -> None:
    with service.runtime.database.operator() as connection:
        broken = webhooks.add_secret(connection, "clinic", {"encrypted_data": "x"})
    try:
        assert send(service.url, "clinic", service.secret).status_code == 202
        assert send(service.url, "clinic", new_secret()).status_code == 401
    finally:
        with service.runtime.database.operator() as connection:
            webhooks.revoke_secret(connection, "clinic", broken)


def test_whoever_may_not_does_not_learn_which_organizations_there_are(service: Service) -> None:
    strangers = new_secret()
    altered = {**signed(service.secret, BODY), "webhook-id": "another"}
    answers = {
        "wrong signature": send(service.url, "clinic", strangers),
        "none with a secret": send(service.url, "silent", strangers),
        "unknown": send(service.url, "unknown", strangers),
        "odd": service.post("a\0b", BODY, signed(strangers, BODY)),
        "not signed": service.post("clinic", BODY, {}),
        "another's message": service.post("clinic", BODY, altered),
        "not signed, unknown": service.post("unknown", BODY, {}),
        "not JSON": service.post("clinic", b"[", signed(strangers, b"[")),
    }
    told = {
        (each.status_code, each.text, str(sorted(each.headers.items() - {("date", each.headers["date"])})))
        for each in answers.values()
    }
    assert len(told) == 1, answers
    (answer,) = {each.status_code for each in answers.values()}
    assert answer == 401
    assert answers["odd"].headers["content-type"] == PROBLEM
    assert service.events() == []


def test_refusals_are_noted_without_what_was_sent(service: Service) -> None:
    with service.runtime.database.operator() as connection:
        connection.execute(sa.text("delete from cliniko.api_refusals"))
    assert send(service.url, "made-up", new_secret(), {"name": "Jane"}).status_code == 401
    with service.runtime.database.operator() as connection:
        (noted,) = api_tokens.refusals(connection, 10)
    assert noted.refusal.reason == "webhook not signed as it must be"
    assert noted.refusal.route == "/v1/webhooks/{organization_id}"
    assert "made-up" not in str(noted)
    assert "Jane" not in str(noted)


@pytest.mark.parametrize("body", [b"", b"[", b"[]", b'"x"', b"7", b"null", b"[" * 100_000, b"9" * 10_000, b'{"a":1}x'])
def test_a_signed_body_that_is_no_object_is_a_problem(service: Service, body: bytes) -> None:
    answer = service.post("clinic", body, signed(service.secret, body))
    assert answer.status_code == 400
    assert answer.headers["content-type"] == PROBLEM
    assert "JSON object" in answer.json()["detail"]
    assert service.events() == []


@pytest.mark.parametrize("message_id", ["a" * 257, "a b", "a\tb", "é"])
def test_an_odd_message_id_is_a_problem_whatever_else_is_right(service: Service, message_id: str) -> None:
    for organization_id in ("clinic", "unknown"):
        headers = {"webhook-id": message_id.encode("latin-1"), "webhook-timestamp": b"1", "webhook-signature": b"v1,x"}
        url = f"{service.url}/v1/webhooks/{organization_id}"
        answer = CLIENT.post(url, content=BODY, headers=headers)  # pyright: ignore[reportArgumentType]
        assert (answer.status_code, answer.headers["content-type"]) == (400, PROBLEM)
    assert send(service.url, "clinic", service.secret, message_id="a" * 256).status_code == 202


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_is_taken_up_to_the_limit_and_not_beyond(service: Service, chunked: bool) -> None:
    def answer(size: int) -> httpx.Response:
        body = b'{"a":"' + b"x" * (size - 8) + b'"}'
        content: Any = iter([body[:1000], body[1000:]]) if chunked else body
        url = f"{service.url}/v1/webhooks/clinic"
        return CLIENT.post(url, content=content, headers=signed(service.secret, body))

    assert answer(LARGEST_BODY).status_code == 202
    too_large = answer(LARGEST_BODY + 1)
    assert (too_large.status_code, too_large.headers["content-type"]) == (413, PROBLEM)
    assert answer(READ_ON).status_code == 413
    assert len(service.events()) == 1


def test_an_endless_body_is_not_read_to_its_end(service: Service) -> None:
    parts = urlsplit(service.url)
    sent = 0
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(b"POST /v1/webhooks/clinic HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        try:
            while sent < 50 * READ_ON:
                connection.sendall(chunk)
                sent += len(chunk)
        except OSError:
            pass
    assert sent < 50 * READ_ON
    assert send(service.url, "clinic", service.secret).status_code == 202, "the service goes on"


def test_a_body_that_never_ends_is_given_up(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cliniko_pipeline.api.webhooks.SECONDS_TO_SEND", 0.2)
    parts = urlsplit(service.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(b"POST /v1/webhooks/clinic HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_one_that_hangs_up_in_the_middle_is_no_defect(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    parts = urlsplit(service.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(b"POST /v1/webhooks/clinic HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.1)
    assert send(service.url, "clinic", service.secret).status_code == 202
    assert "defect" not in caplog.text


def test_what_is_removed_is_believed_no_more_and_leaves_nothing(service: Service) -> None:
    with service.runtime.database.operator() as connection:
        organizations.save(connection, "leaving", "Leaving", {"encrypted_data": "x"}, validated=False)
    secret, _ = add_secret(service.runtime, "leaving")
    assert send(service.url, "leaving", secret).status_code == 202
    organizations.remove(service.runtime.database, "leaving")
    assert service.events() == []
    assert send(service.url, "leaving", secret).status_code == 401


def test_an_accepted_webhook_costs_two_statements(service: Service) -> None:
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        seen.append(statement)

    engine = service.runtime.database._engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        assert send(service.url, "clinic", service.secret).status_code == 202
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    assert [
        word in statement for statement, word in zip(seen, ("from cliniko.webhook_secrets", "insert"), strict=True)
    ] == [True] * 2


BYTES = st.binary(max_size=40)
HEADER = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=60).map(
    # No client sends white space around a value.
    lambda text: text.strip().encode("latin-1").strip()
)


@settings(max_examples=examples(60))
@given(
    path=st.sampled_from(["clinic", "silent", "unknown", "%00", "%FF", "a%2Fb", "%F0%9F%8F%84"]),
    headers=st.dictionaries(
        st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature", "content-type", "content-encoding"]),
        st.one_of(
            HEADER,
            st.sampled_from([b"nan", b"inf", b"-1", b"1e400", b"v1,", b",", b"v1,a v1,\xff", b"9" * 400]),
        ),
    ),
    body=st.one_of(BYTES, st.just(BODY)),
)
def test_whatever_is_sent_unsigned_is_a_problem_and_no_defect(
    module_service: Service, path: str, headers: dict[str, bytes], body: bytes
) -> None:
    answer = CLIENT.post(f"{module_service.url}/v1/webhooks/{path}", content=body, headers=headers)  # pyright: ignore[reportArgumentType]
    assert answer.status_code in {400, 401, 404}
    assert answer.headers["content-type"] == PROBLEM


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda each: st.lists(each) | st.dictionaries(st.text(), each),
    max_leaves=8,
)


@settings(max_examples=examples(60))
@given(content=st.one_of(JSON, st.dictionaries(st.just("type"), JSON), st.dictionaries(st.just("type"), st.text())))
def test_whatever_is_signed_is_accepted_where_it_is_an_object(module_service: Service, content: Any) -> None:
    answer = send(module_service.url, "clinic", module_service.secret, content if content is not None else 0)
    assert answer.status_code == (202 if isinstance(content, dict) else 400)


def test_the_description_names_every_answer_with_examples(module_service: Service) -> None:
    described = httpx.get(f"{module_service.url}/openapi.json").json()
    route = described["paths"]["/v1/webhooks/{organization_id}"]["post"]
    assert set(route["responses"]) == {"202", "400", "401", "408", "413", "422", "503"}
    assert "security" not in route
    assert {each["name"] for each in route["parameters"]} == {
        "organization_id",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    }
    assert all("examples" in json.dumps(each) for each in route["parameters"])
    assert route["requestBody"]["content"]["application/json"]["examples"]


def test_without_a_database_it_is_asked_to_come_again(module_service: Service, tmp_path: Path) -> None:
    url = URL.create("postgresql", host="127.0.0.1", port=1, database="none")
    with open_runtime(load_settings(environment(url, tmp_path))) as runtime, served(runtime) as address:
        answer = send(address, "clinic", new_secret())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")


def test_the_service_begins_without_asking_the_database(tmp_path: Path) -> None:
    url = URL.create("postgresql", host="127.0.0.1", port=1, database="none")
    with open_runtime(load_settings(environment(url, tmp_path))) as runtime:
        assert create_application(runtime).openapi()["paths"]


# --- What the documentation shows ---------------------------------------------------------------------------

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_the_documented_code_steps_are_accepted(service: Service, language: str) -> None:
    _, _, code = OPERATIONS.read_text(encoding="utf-8").partition(f"```{language}\n")
    code = code.partition("```")[0].replace("https://HOST", service.url).replace("/ORG", "/clinic")
    assert code.count("whsec_...") == 1
    code = code.replace("whsec_...", service.secret)
    if language == "python":
        command = [sys.executable, "-c", code]
    elif shutil.which("node") is None:
        pytest.skip("no JavaScript here")
    else:
        # As a code step is run: inside of a function that may wait.
        command = ["node", "--eval", f"(async () => {{ {code} }})()"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert [event[2] for event in service.events()] == ["appointment.updated"]
