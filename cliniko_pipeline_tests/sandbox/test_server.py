import socket
import threading
from contextlib import suppress
from email.utils import parsedate_to_datetime

import httpx
import pytest

from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.connections import is_loopback
from cliniko_pipeline.sandbox.server import running_sandbox
from cliniko_pipeline_tests.support.sandboxes import KEY, USER_AGENT, linked, record

ACCEPT = {"Accept": "application/json"}
HEADERS = {**ACCEPT, "User-Agent": USER_AGENT}


def account(name="clinic", shard="au4", key=KEY, **records):
    return Account.from_records(name, shard, key, {"patients": [record(1)], **records})


@pytest.fixture
def served():
    accounts = [account(), account("old", "au1", "bm8tc2hhcmQ"), account("other", "uk2", "b3RoZXI-uk2")]
    with running_sandbox(accounts) as sandbox:
        yield sandbox


def fetch(sandbox, name, user, *, headers=HEADERS, password="", path="/patients"):
    with httpx.Client(trust_env=False) as client:
        # httpx adds these headers by default.
        for header in ("Accept", "User-Agent"):
            client.headers.pop(header)
        url = sandbox.base_url(name) + path
        return client.get(url, auth=None if user is None else (user, password), headers=headers)


def test_key_is_accepted_with_and_without_its_shard(served):
    """A key without a shard belongs to the shard au1."""
    served.add(account("late", "eu1", "bGF0ZQ-eu1"))
    for name, key in {"clinic": KEY, "old": "bm8tc2hhcmQ-au1", "late": "bGF0ZQ-eu1"}.items():
        for user in (key, key[: -len("-au4")]):
            assert fetch(served, name, user).status_code == 200, user


def test_wrong_or_revoked_key_is_401_and_forbidden_resource_403(served):
    served.accounts["clinic"].forbidden_resources = {"patients"}
    answer = fetch(served, "clinic", KEY)
    assert (answer.status_code, answer.headers["content-type"]) == (403, "application/json; charset=utf-8")
    assert fetch(served, "clinic", KEY, path="/businesses").status_code == 200
    for user in (None, "wrong", "wrong-au4", "b3RoZXI-uk2", "b3RoZXI-au4", ""):
        answer = fetch(served, "clinic", user)
        assert (answer.status_code, list(answer.json())) == (401, ["message"]), user
    assert fetch(served, "clinic", KEY, password="x").status_code == 401
    served.accounts["clinic"].revoked = True
    assert fetch(served, "clinic", KEY).status_code == 401


def test_user_agent_needs_an_address_and_accept_json(served):
    for agent in (None, "", "sync", "sync (no address)", "(me@example.org)", "sync me@example.org"):
        answer = fetch(served, "clinic", KEY, headers=ACCEPT if agent is None else {**ACCEPT, "User-Agent": agent})
        assert (answer.status_code, answer.headers["content-type"][:9]) == (403, "text/html"), agent
    for accept in ({}, {"Accept": "*/*"}, {"Accept": "text/html"}):
        assert fetch(served, "clinic", KEY, headers={"User-Agent": USER_AGENT, **accept}).status_code == 406


def test_record_is_read_by_id_only(served, calling):
    caller = calling(served, served.accounts["clinic"])
    assert caller.get("/patients/1").json() == record(1)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert caller.request(method, "/patients/1").status_code == 405
    for path in ("/unicorns", "/patients/99", "/unavailable_blocks", "/patients/1/attendees"):
        answer = caller.get(path)
        assert (answer.status_code, list(answer.json())) == (404, ["message"]), path


def test_settings_are_one_object_or_none(served, calling):
    account = served.accounts["clinic"]
    caller = calling(served, account)
    assert caller.get("/settings").json() == {"account": {"name": "clinic"}}
    assert caller.get("/settings/1").status_code == 404
    account.settings = None
    assert caller.get("/settings").status_code == 404
    account.forbidden_resources = {"settings"}
    assert caller.get("/settings").status_code == 403


def test_links_have_the_requested_host_and_shard(calling):
    one = account(attendees=[record(5, patient=linked("patients/1"), links={"self": "{base}/attendees/5"})])
    with running_sandbox([one]) as sandbox:
        answer = calling(sandbox, one).get("/attendees").json()["attendees"][0]
        assert answer["patient"]["links"]["self"] == f"http://{sandbox.host}/au4/v1/patients/1"
        assert answer["links"]["self"] == f"{sandbox.base_url(one)}/attendees/5"
        assert answer == one.wire_records("attendees", sandbox.base_url(one))[0]


def test_429_lasts_until_its_reset():
    now = [1000.5]
    with running_sandbox([account()], requests_per_minute=3, clock=lambda: now[0]) as sandbox:

        def answer(at):
            now[0] = at
            return fetch(sandbox, "clinic", KEY)

        first, *others = [answer(at) for at in (1000.5, 1010.0, 1020.0, 1030.0, 1060.0, 1060.5, 1061.0)]
    assert [each.status_code for each in (first, *others)] == [200, 200, 200, 429, 429, 200, 429]
    assert parsedate_to_datetime(first.headers["date"]).timestamp() == 1000
    assert (others[2].headers["x-ratelimit-reset"], others[2].headers["retry-after"]) == ("1061", "31")
    counters = sandbox.counters
    assert counters.rate_limited == 3
    assert (counters.busiest_window("clinic"), counters.busiest_window("clinic", 10.0)) == (6, 3)


def test_rate_limit_is_per_key_and_retry_after_optional():
    accounts = [account(), account("old", "au1", "bm8tc2hhcmQ")]
    with running_sandbox(accounts, requests_per_minute=1, retry_after=False) as sandbox:
        assert fetch(sandbox, "clinic", KEY).status_code == 200
        assert fetch(sandbox, "old", "bm8tc2hhcmQ").status_code == 200
        # The key without its shard is the same key.
        refused = fetch(sandbox, "clinic", KEY.removesuffix("-au4"))
    assert refused.status_code == 429
    assert "x-ratelimit-reset" in refused.headers
    assert "retry-after" not in refused.headers


def test_requests_are_counted_by_account_resource_and_status(served, calling):
    caller = calling(served, served.accounts["clinic"])
    caller.get("/patients", "archived_at:*", page=1)
    caller.get("/patients/99")
    fetch(served, "clinic", "wrong")
    counters = served.counters
    assert counters.requests() == 3
    assert counters.requests(account="clinic", resource="patients", status=200) == 1
    assert counters.requests(account="clinic", status=404) == 1
    assert counters.requests(status=401) == 1
    assert counters.recorded[0].parameters == (("page", "1"), ("q[]", "archived_at:*"))
    assert len(counters.request_times("clinic")) == 2
    assert KEY not in repr(counters.recorded)


def test_ended_sandbox_leaves_no_thread_or_socket():
    before = set(threading.enumerate())
    with running_sandbox([account()]) as sandbox, httpx.Client(trust_env=False) as kept_alive:
        host, port = sandbox.host.split(":")
        assert kept_alive.get(f"http://{sandbox.host}/sandbox/counters").status_code == 200
        idle = socket.create_connection((host, int(port)), timeout=60)
    with idle:
        assert set(threading.enumerate()) == before
        with suppress(ConnectionResetError):
            assert idle.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=60)


def test_address_name_or_key_in_use_is_refused(served):
    port = int(served.host.rpartition(":")[2])
    with pytest.raises(ArgumentError, match="another host or port"), running_sandbox([], port=port):
        pass
    for other in (account(key="b3RoZXI-au4"), account("other", key=KEY.removesuffix("-au4"))):
        with pytest.raises(ArgumentError), running_sandbox([account(), other]):
            pass


def test_loopback_address_alone_may_steer_the_sandbox():
    addresses = ("127.0.0.1", "::1", "192.0.2.7", None, "", "x")
    assert list(filter(is_loopback, addresses)) == ["127.0.0.1", "::1"]


def test_steering_reads_counters_and_sets_faults(served):
    fetch(served, "clinic", KEY)
    root = f"http://{served.host}/sandbox"
    assert httpx.get(f"{root}/counters").json()["requests"] == 1
    assert httpx.get(f"{root}/accounts/clinic").json()["patients"] == [record(1)]
    assert httpx.get(f"{root}/accounts/nobody").status_code == 404
    broken = {"server_error_rate": 1.0, "broken_pages": [{"resource": "patients", "page": 2, "status": 503}]}
    assert httpx.put(f"{root}/faults", json=broken).status_code == 200
    assert fetch(served, "clinic", KEY).status_code in {500, 502, 503}
    assert httpx.get(f"{root}/faults").json()["broken_pages"][0]["page"] == 2
    for body in (b"{", b"[]", b'{"no_such": 1}', b'{"hang_rate": 2}', b'{"latency_ms": "x"}'):
        answer = httpx.put(f"{root}/faults", content=body)
        assert (answer.status_code, list(answer.json())) == (400, ["message"]), body
    assert served.faults.server_error_rate == 1
