"""Tests of status 429: how long the client waits, which requests wait too, and when the client gives up."""

import random
from datetime import UTC, datetime
from email.utils import format_datetime

import httpx
import pytest

from cliniko_pipeline.cliniko.events import Waiting
from cliniko_pipeline.cliniko.exchange.retry import Retry, decide
from cliniko_pipeline.cliniko.exchange.sender import MAX_WAIT_SECONDS
from cliniko_pipeline.errors import RateLimitedError
from cliniko_pipeline_tests.support.scripted_clients import DATE, NOW, ScriptedClient


def waits_after_429(headers, *, now=float(NOW)):
    """Return the seconds that the client waits after a 429 with these headers."""
    decision = decide(429, headers, attempt=1, now=now, rng=random.Random(1))
    assert decision == Retry(decision.seconds, everyone=True, error=RateLimitedError)
    return decision.seconds


def date_header(instant):
    return format_datetime(datetime.fromtimestamp(instant, UTC), usegmt=True)


@pytest.mark.parametrize(("date", "skew"), [(True, -7_200), (True, 90), (False, 0)])
def test_429_waits_until_the_reset_by_the_servers_clock(date, skew):
    """If the response has no Date, the local clock is used."""
    headers = {"x-ratelimit-reset": str(NOW + 20)} | ({"date": date_header(NOW)} if date else {})
    assert waits_after_429(headers, now=NOW + skew) == 21.0


@pytest.mark.parametrize("reset", ["", "soon", "nan", "1e300", str(NOW - 60)])
def test_429_with_an_absurd_reset_waits_by_retry_after(reset):
    assert waits_after_429({"x-ratelimit-reset": reset, "retry-after": "12"}) == 13.0


@pytest.mark.parametrize("retry_after", [None, "later", "-3", "nan", "86400", "Fri, 99 Foo 2023"])
def test_429_without_a_plausible_time_waits_a_minute(retry_after):
    assert waits_after_429({} if retry_after is None else {"retry-after": retry_after}) == 60.0


def test_429_accepts_a_date_as_retry_after():
    headers = {"retry-after": date_header(NOW + 30), "date": date_header(NOW)}
    assert waits_after_429(headers, now=NOW + 500) == 31.0


def test_429_just_after_its_reset_waits_a_second():
    assert waits_after_429({"x-ratelimit-reset": str(NOW - 1), "date": date_header(NOW)}) == 1.0


def limited(seconds):
    return httpx.Response(429, headers={"X-RateLimit-Reset": str(NOW + seconds), "Date": DATE})


def test_429_blocks_the_budget_of_the_key_until_the_reset():
    scripted = ScriptedClient(limited(40))
    assert len(scripted.crawl()) == 1
    assert scripted.now == pytest.approx(41)
    assert [event for event in scripted.events if isinstance(event, Waiting)] == [
        Waiting(41.0, "Cliniko asked to wait (429)")
    ]
    statistics = scripted.client.statistics
    assert (statistics.rate_limited, statistics.retries, statistics.requests) == (1, 1, 2)
    assert statistics.seconds_waited == pytest.approx(41)


def test_429_is_given_up_after_all_attempts():
    message = ScriptedClient(then=429).crawl_error(RateLimitedError)
    assert "6 answers 429" in message
    assert "CLINIKO_REQUESTS_PER_MINUTE" in message


def test_429_is_given_up_after_the_longest_wait():
    scripted = ScriptedClient(*[limited(290)] * 50, max_attempts=50)
    scripted.crawl_error(RateLimitedError)
    assert scripted.now <= MAX_WAIT_SECONDS


def test_each_attempt_takes_from_the_budget():
    scripted = ScriptedClient(500, 500, limit=1)
    scripted.crawl()
    assert scripted.now >= 120
    waits = [event.reason for event in scripted.events if isinstance(event, Waiting)]
    assert waits == ["the request budget was used up"] * 2
