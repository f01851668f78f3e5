"""Tests of the decision whether to retry after a response. test_rate_limits.py tests the status 429."""

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliniko_pipeline.cliniko.exchange.retry import Fail, Retry, Succeed, TransportFailure, decide, server_time
from cliniko_pipeline.errors import (
    ClinikoUnavailableError,
    ForeignLinkError,
    RequestRejectedError,
    UnexpectedResponseError,
)
from cliniko_pipeline_tests.support.properties import examples


def decision_on(result, headers=None, *, attempt=1, seed=1):
    return decide(result, headers or {}, attempt=attempt, now=1_700_000_000.0, rng=random.Random(seed))


@pytest.mark.parametrize("status", [200, 204])
def test_success_is_accepted(status):
    assert decision_on(status) == Succeed()


@pytest.mark.parametrize("result", [500, 599, 408, 425, *TransportFailure])
def test_transient_failure_is_retried_by_this_client_alone(result):
    decision = decision_on(result)
    assert isinstance(decision, Retry)
    assert (decision.everyone, decision.error) == (False, ClinikoUnavailableError)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (451, RequestRejectedError),
        (308, ForeignLinkError),
        (150, UnexpectedResponseError),
        (700, UnexpectedResponseError),
    ],
)
def test_permanent_failure_is_not_retried(status, error):
    """test_client.py tests the statuses 401, 403, 400, 404 and 302 with their remedies."""
    decision = decision_on(status)
    assert isinstance(decision, Fail)
    assert decision.error is error


def test_403_as_json_does_not_name_the_contact_setting():
    assert "CLINIKO_CONTACT_EMAIL" not in decision_on(403, {"content-type": "application/json"}).reason


@given(attempt=st.integers(1, 10_000), seed=st.integers(0, 1_000))
@settings(max_examples=examples(25))
def test_backoff_is_random_below_a_doubling_ceiling(attempt, seed):
    decision = decision_on(502, attempt=attempt, seed=seed)
    assert 0.0 <= decision.seconds <= min(30.0, 2.0 ** min(attempt - 1, 10))
    assert len({decision_on(502, attempt=6, seed=seed).seconds for seed in range(20)}) == 20


def test_retry_after_of_a_5xx_is_respected_up_to_a_minute():
    assert 7.0 <= decision_on(503, {"retry-after": "7"}).seconds <= 8.0
    assert 60.0 <= decision_on(503, {"retry-after": "86400"}).seconds <= 61.0


@given(
    result=st.integers(-10, 10_000) | st.sampled_from([429, 503, *TransportFailure]),
    headers=st.fixed_dictionaries(
        {}, optional={name: st.text(max_size=30) | st.floats().map(str) | st.integers().map(str)
                      for name in ("date", "retry-after", "x-ratelimit-reset", "content-type")}
    ),
    attempt=st.integers(1, 100),
)  # fmt: skip
@settings(max_examples=examples(40))
def test_wait_is_bounded_for_any_headers(result, headers, attempt):
    decision = decision_on(result, headers, attempt=attempt)
    if isinstance(decision, Retry):
        assert 0.0 <= decision.seconds <= 301.0


def test_server_time_is_in_utc():
    assert server_time({"date": "Tue, 14 Nov 2023 22:13:20 GMT"}) == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert server_time({"date": "yesterday"}) is None
    assert server_time({}) is None
