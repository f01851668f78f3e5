import socket
from collections import Counter
from dataclasses import replace

import httpx
import pytest

from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.sandbox.faults import BrokenPage, Fault, FaultDice, Faults
from cliniko_pipeline.sandbox.server import running_sandbox
from cliniko_pipeline_tests.support.sandboxes import KEY, record


@pytest.fixture
def served():
    one = Account.from_records("clinic", "au4", KEY, {"patients": [record(n) for n in range(300)]})
    with running_sandbox([one]) as sandbox:
        yield sandbox


@pytest.fixture
def caller(served, calling):
    return calling(served, served.accounts["clinic"])


def test_answer_is_an_error_html_or_no_object(served, caller):
    assert caller.get("/patients").status_code == 200
    html = "text/html", "<!DOCTYPE html>"
    for faults, status, expected in (
        (Faults(server_error_rate=1, server_error_statuses=(503,)), 503, None),
        (Faults(html_ok_rate=1), 200, html),
        (Faults(html_bad_gateway_rate=1), 502, html),
        (Faults(not_an_object_rate=1), 200, ("application/json", "[]")),
    ):
        served.faults = faults
        answer = caller.get("/patients")
        assert answer.status_code == status
        if expected is not None:
            assert answer.headers["content-type"].startswith(expected[0])
            assert answer.text.startswith(expected[1])


def test_reset_before_the_answer_breaks_the_connection(served, caller):
    served.faults = Faults(reset_before_body_rate=1)
    with pytest.raises(httpx.ReadError):
        caller.get("/patients")
    assert served.counters.requests(status=0) == 1


@pytest.mark.parametrize(
    ("faults", "end"),
    [(Faults(reset_in_body_rate=1), ConnectionResetError), (Faults(truncated_body_rate=1), None)],
)
def test_half_a_body_ends_with_a_reset_or_early(served, faults, end):
    served.faults = faults
    host, port = served.host.split(":")
    request = (
        f"GET /au4/v1/patients HTTP/1.1\r\nHost: {served.host}\r\nAccept: application/json\r\n"
        f"User-Agent: t (t@example.org)\r\nAuthorization: {httpx.BasicAuth(KEY, '')._auth_header}\r\n\r\n"
    )
    received, error = b"", None
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(request.encode())
        try:
            while part := connection.recv(65536):
                received += part
        except ConnectionResetError as reset:
            error = type(reset)
    head, _, body = received.partition(b"\r\n\r\n")
    promised = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    assert head.startswith(b"HTTP/1.1 200")
    assert len(body) == promised // 2
    assert error is end


def test_429_is_answered_to_the_first_requests(served, caller):
    served.faults = Faults(too_many_requests_first=3)
    answers = [caller.get("/patients") for _ in range(5)]
    assert [one.status_code for one in answers] == [429, 429, 429, 200, 200]
    assert "x-ratelimit-reset" in answers[0].headers


def test_hanging_answer_times_out_and_server_still_ends(served, caller):
    served.faults = Faults(hang_rate=1, hang_seconds=600)
    with pytest.raises(httpx.ReadTimeout):
        caller._http.get(served.base_url("clinic") + "/patients", timeout=httpx.Timeout(60, read=0.1))
    served.faults = Faults(hang_rate=1, hang_seconds=0.05)
    with pytest.raises(httpx.RemoteProtocolError):
        caller.get("/patients")


def test_latency_is_waited_before_the_answer(served, caller):
    served.faults = Faults(latency_ms=60, jitter_ms=1)
    assert caller.get("/patients").elapsed.total_seconds() >= 0.06


def test_redirect_and_next_link_lead_to_another_host(served, caller):
    other = "http://other.example.org"
    served.faults = Faults(redirect_rate=1, redirect_to=other)
    answer = caller.get("/patients", page=2)
    assert (answer.status_code, answer.headers["location"]) == (302, f"{other}/au4/v1/patients?page=2")
    served.faults = Faults(next_links_to=other)
    links = caller.get("/patients", page=2).json()["links"]
    assert links["next"].startswith(f"{other}/au4/v1/patients?")
    assert links["previous"].startswith(served.base_url("clinic"))


def test_broken_page_alone_always_fails(served, caller):
    served.faults = Faults(
        broken_pages=(BrokenPage("patients", 2, status=503), BrokenPage("patients", 3, truncated=True))
    )
    assert caller.get("/patients").status_code == 200
    assert {caller.get("/patients", page=2).status_code for _ in range(5)} == {503}
    for _ in range(2):
        with pytest.raises(httpx.RemoteProtocolError):
            caller.get("/patients", page=3)
    assert caller.get("/businesses", page=2).status_code == 200


def test_faults_can_be_limited_to_accounts(served, caller):
    served.faults = Faults(server_error_rate=1, accounts=("another",))
    assert caller.get("/patients").status_code == 200
    served.faults = replace(served.faults, accounts=("clinic",))
    assert caller.get("/patients").status_code != 200


def test_faults_are_shares_of_requests_and_the_same_per_seed():
    faults = Faults(seed=7, server_error_rate=0.2, redirect_rate=0.1, jitter_ms=5)
    rolls, same, other = (
        [dice.roll("clinic") for _ in range(2000)] for dice in map(FaultDice, (faults, faults, replace(faults, seed=8)))
    )
    assert rolls == same != other
    counted = Counter(one.fault for one in rolls)
    assert set(counted) == {None, Fault.SERVER_ERROR, Fault.REDIRECT}
    assert 300 < counted[Fault.SERVER_ERROR] < 500
    assert 120 < counted[Fault.REDIRECT] < 280


@pytest.mark.parametrize("setting", [{"hang_rate": -0.1}, {"latency_ms": float("nan")}, {"html_ok_rate": 1.5}])
def test_fault_rate_out_of_range_is_refused(setting):
    with pytest.raises(ArgumentError):
        Faults(**setting)


def test_faults_survive_json():
    faults = Faults(seed=3, hang_rate=0.5, broken_pages=(BrokenPage("patients", 2),), accounts=("a",))
    assert Faults.from_json(faults.as_json()) == faults
