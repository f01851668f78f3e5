import socket
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


def test_server_error_is_answered_when_chosen(served, caller):
    assert {caller.get("/patients", page=n).status_code for n in range(1, 8)} == {200}
    served.faults = Faults(server_error_rate=1, server_error_statuses=(503,))
    assert caller.get("/patients").status_code == 503


def test_body_is_an_html_page_or_json_without_an_object(served, caller):
    for faults, status in ((Faults(html_ok_rate=1), 200), (Faults(html_bad_gateway_rate=1), 502)):
        served.faults = faults
        answer = caller.get("/patients")
        assert (answer.status_code, answer.headers["content-type"][:9]) == (status, "text/html")
        assert answer.text.startswith("<!DOCTYPE html>")
    served.faults = Faults(not_an_object_rate=1)
    assert caller.get("/patients").json() == []


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
    served.faults = Faults(redirect_rate=1, redirect_to="http://other.example.org")
    answer = caller.get("/patients", page=2)
    assert (answer.status_code, answer.headers["location"]) == (
        302,
        "http://other.example.org/au4/v1/patients?page=2",
    )
    served.faults = Faults(next_links_to="http://other.example.org")
    links = caller.get("/patients", page=2).json()["links"]
    assert links["next"].startswith("http://other.example.org/au4/v1/patients?")
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


def rolls(faults, number=2000):
    dice = FaultDice(faults)
    return [dice.roll("clinic") for _ in range(number)]


def test_faults_of_a_seed_are_the_same():
    faults = Faults(seed=7, server_error_rate=0.2, hang_rate=0.1, jitter_ms=5)
    assert rolls(faults) == rolls(faults)
    assert rolls(faults) != rolls(replace(faults, seed=8))


def test_fault_rates_are_shares_of_requests():
    counted = [one.fault for one in rolls(Faults(server_error_rate=0.2, redirect_rate=0.1))]
    assert 300 < counted.count(Fault.SERVER_ERROR) < 500
    assert 120 < counted.count(Fault.REDIRECT) < 280
    assert counted.count(None) == 2000 - counted.count(Fault.SERVER_ERROR) - counted.count(Fault.REDIRECT)


@pytest.mark.parametrize("setting", [{"hang_rate": -0.1}, {"latency_ms": float("nan")}, {"html_ok_rate": 1.5}])
def test_fault_rate_out_of_range_is_refused(setting):
    with pytest.raises(ArgumentError):
        Faults(**setting)


def test_faults_survive_json():
    faults = Faults(seed=3, hang_rate=0.5, broken_pages=(BrokenPage("patients", 2),), accounts=("a",))
    assert Faults.from_json(faults.as_json()) == faults
