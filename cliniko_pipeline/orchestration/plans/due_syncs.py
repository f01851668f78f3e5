"""Pure functions for due syncs, due count comparisons and the freshness of organizations."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta, tzinfo
from hashlib import sha256

from cliniko_pipeline.postgres.operator_tables.scheduling import Scheduling
from cliniko_pipeline.time_zones import time_zone

DAY = timedelta(days=1)


@dataclass(frozen=True)
class DefaultSchedule:
    """The schedule of organizations that have no schedule of their own.

    Attributes:
        sync_every_minutes: the time between incremental syncs, or None for no incremental syncs.
        full_sync_at: when full syncs begin, in each organization's time zone, or None for no full syncs.
        full_sync_spread: the period after `full_sync_at` over which the full syncs are spread.
    """

    sync_every_minutes: int | None
    full_sync_at: time | None
    full_sync_spread: timedelta


@dataclass(frozen=True)
class DueSync:
    """A sync to request.

    Attributes:
        is_first: whether no earlier sync has succeeded, so that this one may read everything.
    """

    organization_id: str
    is_full: bool
    is_first: bool


def due_syncs(
    schedulings: Iterable[Scheduling], in_flight: Collection[str], default: DefaultSchedule, now: datetime
) -> list[DueSync]:
    """Return the syncs to request at `now` (aware, UTC), at most one per organization.

    A sync is due if no sync was requested since the organization's last scheduled time, or if a retry is due. So a sync
    is requested later if the daemon was down at that time, or if another run was in flight. The scheduled times of
    organizations are spread: each has an offset that is computed from the organization's id.
    """
    return [
        due for state in schedulings if _can_sync(state, in_flight) if (due := _due(state, default, now)) is not None
    ]


def due_counts(
    schedulings: Iterable[Scheduling], in_flight: Collection[str], every: timedelta | None, now: datetime
) -> list[str]:
    """Return the organizations whose record counts are to be compared at `now`.

    Organizations that were never synced are left out. The scheduled times are spread like those of `due_syncs`.
    """
    if every is None:
        return []
    return [
        state.organization_id
        for state in schedulings
        if _can_sync(state, in_flight)
        if (last := state.counts_requested_at or state.succeeded_at) is not None
        if last < _last_scheduled(now, every, _offset(state.organization_id, "counts", every))
    ]


def _can_sync(state: Scheduling, in_flight: Collection[str]) -> bool:
    return state.is_active and state.is_on and state.paused_at is None and state.organization_id not in in_flight


@dataclass(frozen=True)
class Freshness:
    """Whether an organization was verified recently enough, with an explanation."""

    holds: bool
    remark: str


def freshness(scheduling: Scheduling, default: DefaultSchedule, within: timedelta, now: datetime) -> Freshness:
    """Compare the time since the organization was last verified, by a sync or a probe, with the freshness limit.

    The limit is `within`, or twice the time between two syncs if that is longer. Organizations that are disabled or
    not scheduled are always fresh.
    """
    period = _period(scheduling, default)
    # If the organization was enabled after it was last verified, the time is measured from when it was enabled.
    instants = (scheduling.verified_at, scheduling.known_since)
    since = max((instant for instant in instants if instant is not None), default=None)
    if period is None or since is None or not scheduling.is_active or not scheduling.is_on:
        return Freshness(holds=True, remark="It is not scheduled, so it has no freshness limit.")
    limit = max(within, 2 * period)
    what = "Last verified" if since == scheduling.verified_at else "Not synced since it was scheduled"
    return Freshness(
        holds=now - since <= limit,
        remark=f"{what} {_minutes(now - since)} ago; the limit is {_minutes(limit)}.",
    )


def _period(scheduling: Scheduling, default: DefaultSchedule) -> timedelta | None:
    """Return the time between two syncs, or None if the organization is not scheduled."""
    every = scheduling.sync_every_minutes or default.sync_every_minutes
    if every is not None:
        return timedelta(minutes=every)
    return None if (scheduling.full_sync_at or default.full_sync_at) is None else DAY


def _minutes(time: timedelta) -> str:
    return f"{max(time, timedelta(0)) // timedelta(minutes=1)} minutes"


def _due(scheduling: Scheduling, default: DefaultSchedule, now: datetime) -> DueSync | None:
    incremental = DueSync(scheduling.organization_id, is_full=False, is_first=scheduling.succeeded_at is None)
    every = scheduling.sync_every_minutes or default.sync_every_minutes
    full_at = scheduling.full_sync_at or default.full_sync_at
    spread = timedelta(0) if scheduling.full_sync_at is not None else default.full_sync_spread
    if full_at is not None:
        # The first sync reads everything, also if it was requested as an incremental one.
        last_full = scheduling.full_requested_at or scheduling.requested_at
        offset = _offset(scheduling.organization_id, "full", spread)
        scheduled = _last_full_sync_time(now, full_at, offset, time_zone(scheduling.time_zone))
        # Without incremental syncs, the first sync is a full one.
        is_due = every is None if last_full is None else last_full < scheduled
        if is_due:
            return replace(incremental, is_full=True)
    is_scheduled = every is not None or full_at is not None
    if is_scheduled and scheduling.retry_at is not None and scheduling.retry_at <= now:
        return incremental
    if every is None:
        return None
    period = timedelta(minutes=every)
    scheduled = _last_scheduled(now, period, _offset(scheduling.organization_id, "sync", period))
    if scheduling.requested_at is None or scheduling.requested_at < scheduled:
        return incremental
    return None


def _last_scheduled(now: datetime, period: timedelta, offset: timedelta) -> datetime:
    """Return the latest time up to `now` that is `offset` after a multiple of `period`."""
    epoch = datetime(1970, 1, 1, tzinfo=now.tzinfo)
    return now - (now - epoch - offset) % period


def _last_full_sync_time(now: datetime, begins: time, offset: timedelta, zone: tzinfo) -> datetime:
    """Return the latest time up to `now` that is `offset` after the local time `begins`.

    If a change of the clock skips `begins` on a date, the time is computed as if the clock had not been changed. If
    `begins` occurs twice on a date, the first time is used. A date that the zone skips gets the next date's time.
    """
    today = now.astimezone(zone).date()
    times = (datetime.combine(today + days * DAY, begins, zone).astimezone(UTC) + offset for days in range(-3, 2))
    return max(instant for instant in times if instant <= now)


def _offset(organization_id: str, purpose: str, spread: timedelta) -> timedelta:
    """Return the organization's offset within `spread`. All machines compute the same offset."""
    digest = sha256(f"{purpose} {organization_id}".encode()).digest()
    return spread * (int.from_bytes(digest[:8]) / 2**64)
