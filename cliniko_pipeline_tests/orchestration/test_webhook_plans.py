"""Which syncs webhook events request, and the messages and delays of deliveries."""

import json
from collections import deque
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliniko_pipeline.orchestration.webhook_plans import (
    AGAIN,
    BETWEEN_RUNS,
    DELAYS,
    announced_syncs,
    delay_after,
    ended,
    trial,
)
from cliniko_pipeline.postgres.scheduling import Scheduling
from cliniko_pipeline.postgres.webhook_deliveries import EndedRun
from cliniko_pipeline.postgres.webhooks import PendingEvents
from cliniko_pipeline_tests.support.properties import examples

NOW = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
ORG = Scheduling("org", requested_at=NOW - timedelta(hours=1))
PENDING = {"org": PendingEvents("org", NOW - SECOND, 3)}


def planned(scheduling: Scheduling = ORG, now: datetime = NOW, in_flight: frozenset[str] = frozenset()) -> list[str]:
    return [each.run_key for each in announced_syncs(PENDING, [scheduling], in_flight, now)]


@pytest.mark.parametrize(
    ("change", "is_requested"),
    [
        ({"is_active": False}, False),
        ({"paused_at": NOW}, False),
        ({"retry_at": NOW + SECOND}, False),
        ({"retry_at": NOW}, True),
        ({"requested_at": NOW - BETWEEN_RUNS + SECOND}, False),
        ({"requested_at": NOW - BETWEEN_RUNS}, True),
        ({"requested_at": None}, True),
        ({"requested_at": NOW + MINUTE}, True),  # by another clock
        ({"failures": 1, "failure_is_permanent": True, "requested_at": NOW - AGAIN + SECOND}, False),
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
        *planned(now=NOW + AGAIN),
        *[each.run_key for each in announced_syncs(later, [ORG], set(), NOW)],
    ]
    assert len(set(keys)) == 4
    assert planned(now=NOW + MINUTE) == planned()


# --- A history ----------------------------------------------------------------------------------------------

OUTCOMES = ("succeeds", "fails", "fails permanently", "is canceled", "is lost")


@dataclass
class World:
    """One organization, the daemon that ticks, and Dagster that makes no two runs of one key."""

    events: deque[datetime]
    outcomes: deque[tuple[str, int, int]]
    now: datetime = NOW
    scheduling: Scheduling = field(default_factory=lambda: Scheduling("org", is_on=False))
    received: list[datetime] = field(default_factory=list)
    read_began_at: datetime | None = None
    requests: list[datetime] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    run: tuple[datetime, datetime, str] | None = None

    def pending(self) -> list[datetime]:
        return [each for each in self.received if self.read_began_at is None or each >= self.read_began_at]

    def tick(self) -> None:
        self.now += 5 * SECOND
        while self.events and self.events[0] <= self.now:
            self.received.append(self.events.popleft())
        if self.run is not None and self.run[1] <= self.now:
            self._end(*self.run)
        pending = self.pending()
        known = {"org": PendingEvents("org", max(pending), len(pending))} if pending else {}
        in_flight = {"org"} if self.run is not None else set()
        for each in announced_syncs(known, [self.scheduling], in_flight, self.now):
            if each.run_key in self.keys:
                continue
            assert pending
            assert self.run is None
            self.keys.add(each.run_key)
            self.requests.append(self.now)
            self.scheduling = replace(self.scheduling, requested_at=self.now, retry_at=None)
            outcome, waits, lasts = self.outcomes.popleft() if self.outcomes else ("succeeds", 1, 5)
            begun = self.now + waits * SECOND
            self.run = (begun, begun + lasts * SECOND, outcome)

    def _end(self, begun: datetime, _ended: datetime, outcome: str) -> None:
        self.run = None
        failures, is_permanent = self.scheduling.failures + 1, outcome == "fails permanently"
        if outcome == "succeeds":
            self.read_began_at = begun
            self.scheduling = Scheduling("org", is_on=False, requested_at=self.scheduling.requested_at)
        elif outcome.startswith("fails"):
            self.scheduling = replace(
                self.scheduling,
                failures=failures,
                failure_is_permanent=is_permanent,
                retry_at=None if is_permanent else self.now + min(MINUTE * 2 ** (failures - 1), AGAIN),
            )


@settings(max_examples=examples(20, 200))
@given(
    events=st.lists(st.integers(0, 600), min_size=1, max_size=30),
    outcomes=st.lists(st.tuples(st.sampled_from(OUTCOMES), st.integers(0, 60), st.integers(1, 120)), max_size=5),
)
def test_every_event_is_followed_by_a_sync(events: list[int], outcomes: list[tuple[str, int, int]]) -> None:
    world = World(deque(NOW + each * SECOND for each in sorted(events)), deque(outcomes))
    # A run without success delays the next by an hour and two minutes at most.
    for _ in range((20 + 125 * (len(outcomes) + 2)) * 12):
        world.tick()
    assert world.pending() == []
    assert world.run is None
    assert all(later - earlier >= BETWEEN_RUNS for earlier, later in pairwise(world.requests))
    assert len(world.requests) <= len(events) + len(outcomes)


def test_burst_of_events_is_two_syncs() -> None:
    at_once = deque(NOW + SECOND * (number / 100) for number in range(1000))
    world = World(at_once, deque([("succeeds", 1, 20)]))
    for _ in range(100):
        world.tick()
    assert len(world.requests) == 2
    assert world.pending() == []


# --- Deliveries ---------------------------------------------------------------------------------------------

RUN = EndedRun(
    "run-1",
    "failed",
    NOW,
    NOW + MINUTE,
    "Cliniko could not be reached.",
    {"cliniko/patients": {"status": "succeeded", "started_at": "x", "records": 3, "inserted": 2, "odd": "Jane"}},
    is_given_up=False,
)


def test_message_of_a_delivery_has_counts_and_reason() -> None:
    assert json.loads(ended(RUN, "org")) == {
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
    assert json.loads(trial("org", NOW))["type"] == "test"


def test_delivery_attempts_back_off_for_three_days() -> None:
    delays = [delay_after(attempts) for attempts in range(1, 11)]
    assert delays == [*DELAYS, None]
    assert all(earlier <= later for earlier, later in pairwise(DELAYS))
    assert timedelta(days=3) < sum(DELAYS, timedelta(0)) < timedelta(days=4)
