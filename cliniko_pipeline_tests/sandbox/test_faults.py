from collections import Counter
from dataclasses import replace

import httpx
import pytest

from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.sandbox.accounts.account import Account
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
    for faults, status, kind, start in (
        (Faults(server_error_rate=1, server_error_statuses=(503,), accounts=("clinic",)), 503, "", ""),
        (Faults(server_error_rate=1, accounts=("another",)), 200, "application/json", "{"),
        (Faults(html_ok_rate=1), 200, "text/html", "<!DOCTYPE html>"),
        (Faults(html_bad_gateway_rate=1), 502, "text/html", "<!DOCTYPE html>"),
        (Faults(not_an_object_rate=1), 200, "application/json", "[]"),
    ):
        served.faults = faults
        answer = caller.get("/patients")
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith(kind)
        assert answer.text.startswith(start)


@pytest.mark.parametrize(
    ("faults", "error"),
    [(Faults(reset_in_body_rate=1), httpx.ReadError), (Faults(truncated_body_rate=1), httpx.RemoteProtocolError)],
)
def test_half_a_body_ends_with_a_reset_or_early(served, caller, faults, error):
    served.faults = faults
    with caller._http.stream("GET", served.base_url("clinic") + "/patients") as answer, pytest.raises(error):
        answer.read()
    assert (answer.status_code, answer.num_bytes_downloaded) == (200, int(answer.headers["content-length"]) // 2)


def test_429_is_answered_to_the_first_requests_and_latency_waited(served, caller):
    served.faults = Faults(too_many_requests_first=2, latency_ms=60, jitter_ms=1)
    answers = [caller.get("/patients") for _ in range(4)]
    assert [one.status_code for one in answers] == [429, 429, 200, 200]
    assert "x-ratelimit-reset" in answers[0].headers
    assert answers[3].elapsed.total_seconds() >= 0.06


def test_reset_or_hanging_answer_fails_and_server_still_ends(served, caller):
    served.faults = Faults(reset_before_body_rate=1)
    with pytest.raises(httpx.ReadError):
        caller.get("/patients")
    assert served.counters.requests(status=0) == 1
    served.faults = Faults(hang_rate=1, hang_seconds=600)
    with pytest.raises(httpx.ReadTimeout):
        caller._http.get(served.base_url("clinic") + "/patients", timeout=httpx.Timeout(60, read=0.1))
    served.faults = Faults(hang_rate=1, hang_seconds=0.05)
    with pytest.raises(httpx.RemoteProtocolError):
        caller.get("/patients")


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
    pages = BrokenPage("patients", 2, status=503), BrokenPage("patients", 3, truncated=True)
    served.faults = Faults(broken_pages=pages)
    assert Faults.from_json(served.faults.as_json()) == served.faults
    statuses = [
        caller.get(path, page=page, per_page=100).status_code
        for path in ("/patients", "/businesses")
        for page in (1, 2, 2)
    ]
    assert statuses == [200, 503, 503, 200, 200, 200]
    for _ in range(2):
        with pytest.raises(httpx.RemoteProtocolError):
            caller.get("/patients", page=3, per_page=100)


def test_broken_page_fails_in_smaller_ones_too(served, caller):
    served.faults = Faults(broken_pages=(BrokenPage("patients", 2, status=503),))
    statuses = [
        caller.get("/patients", page=page, per_page=size).status_code
        for page, size in ((2, 50), (3, 50), (4, 50), (5, 50), (100, 1), (101, 1), (200, 1), (201, 1))
    ]
    assert statuses == [200, 503, 503, 200, 200, 503, 503, 200]


def test_broken_page_is_answered_after_its_times(served, caller):
    served.faults = Faults(broken_pages=(BrokenPage("patients", 2, status=503, times=2),))
    assert Faults.from_json(served.faults.as_json()) == served.faults
    statuses = [caller.get("/patients", page=page, per_page=100).status_code for page in (2, 1, 2, 2, 1)]
    assert statuses == [503, 200, 503, 200, 200]
    served.faults = Faults.from_json(served.faults.as_json())
    assert caller.get("/patients", page=2, per_page=100).status_code == 503, "faults that are set again count anew"


@pytest.mark.parametrize("date", ["Thu, 01 Jan 1970 00:00:00 GMT", ""])
def test_date_of_every_answer_can_be_set(served, caller, date):
    served.faults = Faults(date=date)
    assert Faults.from_json(served.faults.as_json()) == served.faults
    answers = [caller.get("/patients"), caller.get("/patients/0"), caller.get("/patients", "nothing:=1")]
    assert [(each.status_code, each.headers["date"]) for each in answers] == [(200, date), (200, date), (400, date)]
    served.faults = Faults()
    assert caller.get("/patients").headers["date"] not in ("", date)


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
