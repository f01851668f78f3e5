import random
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliniko_pipeline.cliniko.retry import Fail, Retry, Succeed, TransportFailure, decide, server_time
from cliniko_pipeline.errors import (
    AuthenticationError,
    ClinikoUnavailableError,
    ForeignLinkError,
    PermissionDeniedError,
    RateLimitedError,
    RequestRejectedError,
    UnexpectedResponseError,
)
from cliniko_pipeline_tests.support.properties import examples

NOW = 1_700_000_000.0


def judge(result, headers=None, *, attempt=1, now=NOW, seed=1):
    return decide(result, headers or {}, attempt=attempt, now=now, rng=random.Random(seed))


def date_header(instant):
    return format_datetime(datetime.fromtimestamp(instant, UTC), usegmt=True)


@pytest.mark.parametrize("status", [200, 204])
def test_a_success_is_taken(status):
    assert judge(status) == Succeed()


@pytest.mark.parametrize("result", [500, 502, 503, 504, 520, 599, 408, 425, *TransportFailure])
def test_passing_trouble_is_tried_again_by_this_client_alone(result):
    decision = judge(result)
    assert isinstance(decision, Retry)
    assert (decision.everyone, decision.error) == (False, ClinikoUnavailableError)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        *((status, RequestRejectedError) for status in (400, 404, 405, 406, 410, 415, 422, 451)),
        *((status, ForeignLinkError) for status in (301, 302, 303, 304, 307, 308)),
        (0, UnexpectedResponseError),
        (150, UnexpectedResponseError),
        (700, UnexpectedResponseError),
    ],
)
def test_lasting_trouble_is_not_tried_again(status, error):
    decision = judge(status)
    assert isinstance(decision, Fail)
    assert decision.error is error


def test_a_403_with_a_web_page_points_at_the_contact_address():
    blocked = judge(403, {"content-type": "text/html; charset=UTF-8"})
    assert isinstance(blocked, Fail)
    assert "CLINIKO_CONTACT_EMAIL" in blocked.reason
    lacking = judge(403, {"content-type": "application/json"})
    assert isinstance(lacking, Fail)
    assert "CLINIKO_CONTACT_EMAIL" not in lacking.reason


@given(attempt=st.integers(1, 10_000), seed=st.integers(0, 1_000))
@settings(deadline=None)
def test_a_wait_is_random_below_a_doubling_and_capped_ceiling(attempt, seed):
    decision = judge(502, attempt=attempt, seed=seed)
    assert isinstance(decision, Retry)
    assert 0.0 <= decision.seconds <= min(30.0, 2.0 ** min(attempt - 1, 10))


def test_clients_do_not_come_back_in_step():
    assert len({judge(502, attempt=6, seed=seed).seconds for seed in range(20)}) == 20


def test_a_retry_after_on_a_5xx_is_respected_and_bounded():
    assert 7.0 <= judge(503, {"retry-after": "7"}).seconds <= 8.0
    assert 60.0 <= judge(503, {"retry-after": "86400"}).seconds <= 61.0


def test_a_429_waits_until_the_reset_and_lets_nobody_through():
    decision = judge(429, {"x-ratelimit-reset": str(int(NOW) + 20), "date": date_header(NOW)})
    assert decision == Retry(21.0, everyone=True, error=RateLimitedError)


@pytest.mark.parametrize("skew", [-7_200, -90, 0, 90, 7_200])
def test_the_reset_is_judged_by_the_servers_clock_not_ours(skew):
    headers = {"x-ratelimit-reset": str(int(NOW) + 20), "date": date_header(NOW)}
    assert judge(429, headers, now=NOW + skew).seconds == 21.0


def test_without_a_date_our_clock_has_to_do():
    assert judge(429, {"x-ratelimit-reset": str(int(NOW) + 20)}).seconds == 21.0


@pytest.mark.parametrize(
    "reset", ["", "soon", "nan", "inf", "-1", "0", str(int(NOW * 1000)), "1e300", str(int(NOW) - 60)]
)
def test_a_reset_nobody_can_believe_gives_way_to_retry_after(reset):
    assert judge(429, {"x-ratelimit-reset": reset, "retry-after": "12"}).seconds == 13.0


@pytest.mark.parametrize("retry_after", [None, "", "later", "-3", "nan", "86400", "Fri, 99 Foo 2023"])
def test_a_429_that_says_nothing_believable_waits_a_whole_window(retry_after):
    assert judge(429, {} if retry_after is None else {"retry-after": retry_after}).seconds == 60.0


def test_a_retry_after_may_be_a_date():
    headers = {"retry-after": date_header(NOW + 30), "date": date_header(NOW)}
    assert judge(429, headers, now=NOW + 500).seconds == 31.0


def test_a_reset_that_has_just_passed_still_waits_a_moment():
    assert judge(429, {"x-ratelimit-reset": str(int(NOW) - 1), "date": date_header(NOW)}).seconds == 1.0


@given(
    result=st.integers(-10, 10_000) | st.sampled_from(list(TransportFailure)),
    headers=st.fixed_dictionaries(
        {}, optional={name: st.text(max_size=30) | st.floats().map(str) | st.integers().map(str)
                      for name in ("date", "retry-after", "x-ratelimit-reset", "content-type")}
    ),
    attempt=st.integers(1, 100),
)  # fmt: skip
@settings(max_examples=examples(400))
def test_no_answer_whatever_it_says_makes_a_wait_absurd(result, headers, attempt):
    decision = judge(result, headers, attempt=attempt)
    if isinstance(decision, Retry):
        assert 0.0 <= decision.seconds <= 301.0


def test_the_servers_clock_is_read_in_utc():
    assert server_time({"date": "Tue, 14 Nov 2023 22:13:20 GMT"}) == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert server_time({"date": "yesterday"}) is None
    assert server_time({}) is None
