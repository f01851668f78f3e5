"""Tests of the syncs that webhook events request, and of the messages and delays of deliveries."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliniko_pipeline.orchestration.plans.webhooks import (
    DELAYS,
    MIN_REQUEST_INTERVAL,
    REPEAT_INTERVAL,
    announced_syncs,
    delay_after,
    sync_message,
    trial_message,
)
from cliniko_pipeline.postgres.operator_tables.scheduling import Scheduling
from cliniko_pipeline.postgres.operator_tables.webhook_deliveries import CompleteSync
from cliniko_pipeline.postgres.operator_tables.webhooks import PendingEvents
from cliniko_pipeline_tests.support.properties import examples

NOW = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
ORG = Scheduling("org", requested_at=NOW - timedelta(hours=1))
PENDING = {"org": PendingEvents("org", NOW - SECOND, 3)}


def planned(scheduling: Scheduling = ORG, now: datetime = NOW, in_flight: frozenset[str] = frozenset()) -> list[str]:
    return [sync.run_key for sync in announced_syncs(PENDING, [scheduling], in_flight, now)]


@pytest.mark.parametrize(
    ("change", "is_requested"),
    [
        ({"is_active": False}, False),
        ({"paused_at": NOW}, False),
        ({"retry_at": NOW + SECOND}, False),
        ({"retry_at": NOW}, True),
        ({"requested_at": NOW - MIN_REQUEST_INTERVAL + SECOND}, False),
        ({"requested_at": NOW - MIN_REQUEST_INTERVAL}, True),
        ({"requested_at": None}, True),
        ({"requested_at": NOW + MINUTE}, True),  # according to another clock
        ({"failures": 1, "failure_is_permanent": True, "requested_at": NOW - REPEAT_INTERVAL + SECOND}, False),
        ({"failures": 1, "failure_is_permanent": True}, True),
        ({"is_on": False}, True),
    ],
)
def test_events_of_an_organization_that_can_sync_request_it(change: dict[str, Any], is_requested: bool) -> None:
    assert len(planned(replace(ORG, **change))) == is_requested


def test_organization_in_flight_or_without_events_is_not_synced() -> None:
    assert planned(in_flight=frozenset({"org"})) == []
    assert announced_syncs({}, [ORG], set(), NOW) == []
    assert planned(Scheduling("other")) == []


def test_run_key_identifies_the_request() -> None:
    later = {"org": PendingEvents("org", NOW, 4)}
    keys = [
        *planned(),
        *planned(replace(ORG, failures=1)),
        *planned(now=NOW + REPEAT_INTERVAL),
        *[sync.run_key for sync in announced_syncs(later, [ORG], set(), NOW)],
    ]
    assert len(set(keys)) == 4
    assert planned(now=NOW + MINUTE) == planned()


TICK = timedelta(seconds=5)
OUTCOMES = ("succeeds", "fails", "fails permanently", "is canceled", "is lost")
UNSCHEDULED = Scheduling("org", is_on=False)


@settings(max_examples=examples(20, 200))
@given(
    events=st.lists(st.integers(1, 120), min_size=1, max_size=30),
    outcomes=st.lists(st.tuples(st.sampled_from(OUTCOMES), st.integers(1, 12), st.integers(1, 24)), max_size=5),
)
def test_every_event_is_followed_by_a_sync(events: list[int], outcomes: list[tuple[str, int, int]]) -> None:
    """Events arrive at these ticks.

    A run waits and lasts for the given ticks. Dagster makes no second run with the same key.
    """
    scheduling, requests, left = UNSCHEDULED, {}, iter(outcomes)
    pending: list[int] = []
    run: tuple[int, int, str] | None = None
    # A run without success delays the next run by at most an hour and two minutes.
    for tick in range((20 + 125 * (len(outcomes) + 2)) * 12):
        now = NOW + tick * TICK
        pending += [tick] * events.count(tick)
        if run is not None and run[1] <= tick:
            started, _, outcome = run
            run = None
            if outcome == "succeeds":
                pending = [event for event in pending if event >= started]
                scheduling = replace(UNSCHEDULED, requested_at=scheduling.requested_at)
            elif outcome.startswith("fails"):
                scheduling = failed(scheduling, now, is_permanent=outcome == "fails permanently")
        known = {"org": PendingEvents("org", NOW + max(pending) * TICK, len(pending))} if pending else {}
        for sync in announced_syncs(known, [scheduling], set() if run is None else {"org"}, now):
            if sync.run_key not in requests:
                requests[sync.run_key] = now
                scheduling = replace(scheduling, requested_at=now, retry_at=None)
                outcome, waits, lasts = next(left, ("succeeds", 1, 1))
                run = (tick + waits, tick + waits + lasts, outcome)
    assert (pending, run) == ([], None)
    assert all(later - earlier >= MIN_REQUEST_INTERVAL for earlier, later in pairwise(requests.values()))
    assert len(requests) <= len(set(events)) + len(outcomes), "events that come together are one sync"


def failed(scheduling: Scheduling, now: datetime, *, is_permanent: bool) -> Scheduling:
    retry_at = None if is_permanent else now + min(MINUTE * 2**scheduling.failures, REPEAT_INTERVAL)
    failures = scheduling.failures + 1
    return replace(scheduling, failures=failures, failure_is_permanent=is_permanent, retry_at=retry_at)


RUN = CompleteSync(
    "run-1",
    "failed",
    NOW,
    NOW + MINUTE,
    "Cliniko could not be reached.",
    {"cliniko/patients": {"status": "succeeded", "started_at": "x", "records": 3, "inserted": 2, "odd": "Jane"}},
    is_given_up=False,
)


def test_message_of_a_delivery_has_counts_and_reason() -> None:
    assert json.loads(sync_message(RUN, "org")) == {
        "type": "sync.failed",
        "timestamp": "2026-06-15T09:31:00Z",
        "data": {
            "organization_id": "org",
            "sync_id": "run-1",
            "status": "failed",
            "started_at": "2026-06-15T09:30:00Z",
            "finished_at": "2026-06-15T09:31:00Z",
            "counts": {"cliniko/patients": {"records": 3, "inserted": 2}},
            "error": "Cliniko could not be reached.",
        },
    }
    assert json.loads(trial_message("org", NOW))["type"] == "test"


def test_delivery_attempts_back_off_for_three_days() -> None:
    delays = [delay_after(attempts) for attempts in range(1, 11)]
    assert delays == [*DELAYS, None]
    assert all(earlier <= later for earlier, later in pairwise(DELAYS))
    assert timedelta(days=3) < sum(DELAYS, timedelta(0)) < timedelta(days=4)
