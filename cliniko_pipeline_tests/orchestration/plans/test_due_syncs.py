"""Tests of when organizations are due for syncs, full syncs, retries and comparisons of counts."""

from bisect import bisect_left
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliniko_pipeline.orchestration.plans.due_syncs import (
    DAY,
    DefaultSchedule,
    DueSync,
    due_counts,
    due_syncs,
    freshness,
)
from cliniko_pipeline.postgres.operator_tables.scheduling import Scheduling

NOW = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
NEVER = DefaultSchedule(sync_every_minutes=None, full_sync_at=None, full_sync_spread=timedelta(0))
HOURLY = replace(NEVER, sync_every_minutes=60)
NIGHTLY = DefaultSchedule(sync_every_minutes=60, full_sync_at=time(2), full_sync_spread=timedelta(hours=4))
NEW = Scheduling("org")
MINUTE = timedelta(minutes=1)


def requested(
    scheduling: Scheduling, default: DefaultSchedule, start: datetime, ticks: int
) -> list[tuple[datetime, bool]]:
    """Return the requests of a tick per minute, if every run ends before the next tick."""
    found = []
    for number in range(ticks):
        now = start + number * MINUTE
        for due in due_syncs([scheduling], set(), default, now):
            found.append((now, due.is_full))
            scheduling = replace(
                scheduling, requested_at=now, full_requested_at=now if due.is_full else scheduling.full_requested_at
            )
    return found


def test_new_organization_is_due_now_and_then_hourly():
    first, *others = [now for now, _ in requested(NEW, HOURLY, NOW, 300)]
    assert first == NOW
    assert len(others) == 5
    assert {later - earlier for earlier, later in pairwise(others)} == {timedelta(hours=1)}


def test_new_organization_without_incremental_syncs_is_due_in_full():
    nightly_only = replace(NIGHTLY, sync_every_minutes=None, full_sync_spread=timedelta(0))
    assert requested(NEW, nightly_only, NOW, 24 * 60) == [(NOW, True), (datetime(2026, 6, 16, 2, tzinfo=UTC), True)]


def test_sync_requested_at_its_due_time_is_not_due_again():
    def is_due(at: datetime, requested_at: datetime) -> bool:
        return due_syncs([replace(NEW, requested_at=requested_at)], set(), HOURLY, at) != []

    hour = range(3_600_000_000)
    passed = bisect_left(hour, 1, key=lambda microseconds: is_due(NOW + timedelta(microseconds=microseconds), NOW))
    due_at = NOW + timedelta(microseconds=passed)
    assert is_due(due_at, NOW)
    assert not is_due(due_at, due_at)


def test_full_sync_is_due_once_a_night():
    found = requested(NEW, NIGHTLY, NOW, 3 * 24 * 60)
    full = [now for now, is_full in found if is_full]
    assert len(full) == 3
    assert {later - earlier for earlier, later in pairwise(full)} == {timedelta(days=1)}
    assert all(time(2) <= now.time() < time(6, 1) for now in full)
    assert 70 <= len(found) <= 77


NIGHTS = {
    "Sydney, summer": ("Australia/Sydney", time(2), "2026-01-15", ["01-14T15:00", "01-15T15:00"]),
    "Sydney, 02:00 left out": ("Australia/Sydney", time(2), "2026-10-04", ["10-03T16:00", "10-04T15:00"]),
    "Sydney, 02:30 left out": ("Australia/Sydney", time(2, 30), "2026-10-04", ["10-03T16:30", "10-04T15:30"]),
    "Sydney, 02:00 twice": ("Australia/Sydney", time(2), "2026-04-05", ["04-04T15:00", "04-05T16:00"]),
    "London, 01:30 twice": ("Europe/London", time(1, 30), "2026-10-25", ["10-25T00:30", "10-26T01:30"]),
    "Apia, a date left out": ("Pacific/Apia", time(2), "2011-12-30", ["12-30T12:00", "12-31T12:00"]),
    "unknown here": ("Mars/Olympus_Mons", time(2), "2026-01-15", ["01-15T02:00", "01-16T02:00"]),
    "none": (None, time(2), "2026-01-15", ["01-15T02:00", "01-16T02:00"]),
}


@pytest.mark.parametrize(("zone", "full_at", "first", "due"), NIGHTS.values(), ids=NIGHTS)
def test_full_sync_is_due_at_night_in_the_clinics_zone(zone, full_at, first, due):
    own = replace(NEW, full_sync_at=full_at, time_zone=zone)
    start = datetime.combine(date.fromisoformat(first), full_at, UTC) - timedelta(hours=12)
    before = replace(own, requested_at=start, full_requested_at=start)
    found = [now for now, is_full in requested(before, NEVER, start, 2 * 24 * 60 - 30) if is_full]
    assert [f"{now:%m-%dT%H:%M}" for now in found] == due


@given(
    st.sampled_from(sorted(available_timezones())),
    st.integers(1900, 2100),
    st.times(),
    st.sampled_from([timedelta(0), timedelta(minutes=239)]),
    st.data(),
)
def test_each_date_has_exactly_one_nightly_sync(zone, year, full_at, spread, data):
    """The dates include all clock changes.

    The night of a date is recognized by the instant half a day after the time.
    """
    full_at = full_at.replace(second=0, microsecond=0, fold=0)
    default = DefaultSchedule(sync_every_minutes=None, full_sync_at=full_at, full_sync_spread=spread)
    local = ZoneInfo(zone)

    def after_the_night(day: date) -> datetime:
        return (datetime.combine(day, full_at) + DAY / 2).replace(tzinfo=local).astimezone(UTC)

    days = [date(year, 1, 1) + number * DAY for number in range(366)]
    changed = [day for day in days if after_the_night(day) - after_the_night(day - DAY) != DAY]
    day = data.draw(st.sampled_from(changed or days))
    edges = [after_the_night(day + number * DAY) for number in range(-2, 3)]
    scheduling = replace(NEW, time_zone=zone, requested_at=edges[0], full_requested_at=edges[0])
    nights = [0] * len(edges)
    now = edges[0]
    while (now := now + 15 * MINUTE) <= edges[-1]:
        if due_syncs([scheduling], set(), default, now):
            scheduling = replace(scheduling, full_requested_at=now)
            nights[bisect_left(edges, now)] += 1
    assert nights[1:] == [int(later > earlier) for earlier, later in pairwise(edges)]


def test_due_times_of_organizations_are_spread():
    started = [
        requested(replace(NEW, organization_id=f"org-{number}", requested_at=NOW), HOURLY, NOW + MINUTE, 60)[0][0]
        for number in range(1000)
    ]
    busiest = max(started.count(minute) for minute in set(started))
    assert len(set(started)) == 60
    assert busiest < 40


UNSCHEDULED = {
    "disabled": {"is_active": False},
    "off": {"is_on": False},
    "paused": {"paused_at": NOW, "pause_reason": "revoked"},
}


@pytest.mark.parametrize("change", UNSCHEDULED.values(), ids=UNSCHEDULED)
def test_unscheduled_organization_is_never_due(change: dict[str, Any]) -> None:
    for retry_at in (None, NOW):
        assert due_syncs([replace(NEW, retry_at=retry_at, **change)], set(), NIGHTLY, NOW) == []


def test_organization_is_due_after_its_run_in_flight():
    assert due_syncs([NEW], {"org"}, HOURLY, NOW) == []
    overdue = replace(NEW, requested_at=NOW - timedelta(hours=2))
    assert due_syncs([overdue], {"org"}, HOURLY, NOW) == []
    assert due_syncs([overdue], set(), HOURLY, NOW) == [DueSync("org", is_full=False, is_first=True)]


def test_missed_due_times_are_one_sync():
    missed = replace(NEW, requested_at=NOW - timedelta(days=3))
    assert requested(missed, HOURLY, NOW, 1) == [(NOW, False)]
    assert due_syncs([missed], set(), NIGHTLY, NOW) == [DueSync("org", is_full=True, is_first=True)]


def test_own_schedule_of_an_organization_sets_its_due_time():
    own = replace(NEW, sync_every_minutes=15, full_sync_at=time(10, 5))
    found = requested(own, NEVER, NOW, 120)
    assert [now for now, is_full in found if is_full] == [datetime(2026, 6, 15, 10, 5, tzinfo=UTC)]
    assert 8 <= len(found) <= 10
    assert requested(NEW, NEVER, NOW, 120) == []


def test_failed_sync_is_due_at_its_retry_time():
    failed = replace(NEW, requested_at=NOW, full_requested_at=NOW, retry_at=NOW + 4 * MINUTE)
    for default in (HOURLY, replace(NEVER, full_sync_at=time(2))):
        assert due_syncs([failed], set(), default, NOW + 3 * MINUTE) == []
        assert due_syncs([failed], set(), default, NOW + 4 * MINUTE) == [DueSync("org", is_full=False, is_first=True)]
    assert due_syncs([failed], set(), NEVER, NOW + 4 * MINUTE) == [], "nothing is requested by itself"


@given(
    st.text(min_size=1, max_size=8),
    st.integers(1, 1440),
    st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_due_times_are_exactly_one_period_apart(organization_id, minutes, now):
    default = replace(NEVER, sync_every_minutes=minutes)
    period = timedelta(minutes=minutes)

    def is_due(last: datetime, at: datetime) -> bool:
        scheduling = replace(NEW, organization_id=organization_id, requested_at=last)
        return due_syncs([scheduling], set(), default, at) != []

    assert is_due(now - period, now)
    assert not is_due(now, now)
    assert is_due(now, now + period)


@pytest.mark.parametrize("change", [*UNSCHEDULED.values(), {"succeeded_at": None}, {"counts_requested_at": NOW}])
def test_count_comparison_is_due_for_synced_organizations(change: dict[str, Any]) -> None:
    due = replace(NEW, succeeded_at=NOW - 3 * DAY)
    assert due_counts([due], set(), DAY, NOW) == ["org"]
    assert due_counts([due], {"org"}, DAY, NOW) == [], "a run goes on"
    assert due_counts([due], set(), None, NOW) == [], "never by itself"
    assert due_counts([replace(due, **change)], set(), DAY, NOW) == []


def test_due_times_of_count_comparisons_are_spread():
    organizations = [replace(NEW, organization_id=f"org-{n}", succeeded_at=NOW) for n in range(500)]
    due = [len(due_counts(organizations, set(), DAY, NOW + timedelta(hours=hours))) for hours in range(25)]
    assert (due[0], due[-1]) == (0, 500)
    assert max(later - earlier for earlier, later in pairwise(due)) < 50


@pytest.mark.parametrize(
    ("age", "change", "default", "holds"),
    [
        (180, {}, HOURLY, True),
        (181, {}, HOURLY, False),
        (181, {"verified_at": None, "known_since": NOW - 181 * MINUTE}, HOURLY, False),
        (0, {"verified_at": None}, HOURLY, True),
        (360, {"sync_every_minutes": 180}, HOURLY, True),
        (361, {"sync_every_minutes": 180}, HOURLY, False),
        (48 * 60, {}, replace(NEVER, full_sync_at=time(2)), True),
        (48 * 60 + 1, {}, replace(NEVER, full_sync_at=time(2)), False),
        (9999, {}, NEVER, True),
        (9999, {"is_on": False}, HOURLY, True),
        (9999, {"is_active": False}, HOURLY, True),
    ],
)
def test_organization_is_fresh_within_the_limit_or_two_periods(age, change, default, holds) -> None:
    scheduling = replace(NEW, **{"verified_at": NOW - age * MINUTE} | change)
    assert freshness(scheduling, default, timedelta(hours=3), NOW).holds is holds
