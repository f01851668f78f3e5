"""When which organization is due. Pure: decides, does nothing."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from hashlib import sha256

from cliniko_pipeline.postgres.operator_tables.scheduling import Scheduling
from cliniko_pipeline.time_zones import time_zone

DAY = timedelta(days=1)


@dataclass(frozen=True)
class DefaultSchedule:
    """What holds for an organization that has no schedule of its own.

    Attributes:
        sync_every_minutes: None: never by itself.
        full_sync_at: when, by the time of each organization's time zone, the first of the nightly full syncs begins;
            None: never by itself.
        full_sync_spread: over how much time after that they are spread.
    """

    sync_every_minutes: int | None
    full_sync_at: time | None
    full_sync_spread: timedelta


@dataclass(frozen=True)
class DueSync:
    """A sync to be requested."""

    organization_id: str
    is_full: bool


def due_syncs(
    schedulings: Iterable[Scheduling], in_flight: Collection[str], default: DefaultSchedule, now: datetime
) -> list[DueSync]:
    """Which syncs are to be requested at `now` (aware, UTC): one an organization at most.

    One is due once its last turn has come and nothing was requested since, or when one that failed is to be tried
    again. So a turn that nobody could take, since the daemon was down or the run before it still went on, is taken as
    soon as that is over. Turns are spread by a hash of the organization's id, which stays the same.
    """
    return [
        due
        for each in schedulings
        if each.is_active and each.is_on and each.paused_at is None and each.organization_id not in in_flight
        if (due := _due(each, default, now)) is not None
    ]


def due_counts(
    schedulings: Iterable[Scheduling], in_flight: Collection[str], every: timedelta | None, now: datetime
) -> list[str]:
    """Of which organizations the numbers of records are to be compared at `now`: those that were synced once and whose
    turn, spread by a hash like that of a sync, has come.
    """
    if every is None:
        return []
    return [
        each.organization_id
        for each in schedulings
        if each.is_active and each.is_on and each.paused_at is None and each.organization_id not in in_flight
        if (last := each.counts_requested_at or each.succeeded_at) is not None
        if last < _last_turn(now, every, _share(each.organization_id, "counts", every))
    ]


@dataclass(frozen=True)
class Freshness:
    """Whether an organization was synced no longer ago than promised."""

    holds: bool
    remark: str


def freshness(scheduling: Scheduling, default: DefaultSchedule, within: timedelta, now: datetime) -> Freshness:
    """Judges by the last sync of everything that succeeded, or by when the organization was first scheduled.

    One that is synced less often than promised may be as old as two of its turns; one that is disabled or not synced
    by itself is promised nothing.
    """
    period = _period(scheduling, default)
    # One that was enabled again is promised nothing for the time before.
    since = max((each for each in (scheduling.succeeded_at, scheduling.known_since) if each is not None), default=None)
    if period is None or since is None or not scheduling.is_active or not scheduling.is_on:
        return Freshness(holds=True, remark="It is not synced by itself: nothing is promised.")
    promised = max(within, 2 * period)
    what = "Last synced" if since == scheduling.succeeded_at else "Not synced since it was scheduled"
    return Freshness(
        holds=now - since <= promised,
        remark=f"{what} {_minutes(now - since)} ago; promised are {_minutes(promised)}.",
    )


def _period(scheduling: Scheduling, default: DefaultSchedule) -> timedelta | None:
    """The time between two syncs; None: never by itself."""
    every = scheduling.sync_every_minutes or default.sync_every_minutes
    if every is not None:
        return timedelta(minutes=every)
    return None if (scheduling.full_sync_at or default.full_sync_at) is None else DAY


def _minutes(time: timedelta) -> str:
    return f"{max(time, timedelta(0)) // timedelta(minutes=1)} minutes"


def _due(scheduling: Scheduling, default: DefaultSchedule, now: datetime) -> DueSync | None:
    organization_id = scheduling.organization_id
    full_at = scheduling.full_sync_at or default.full_sync_at
    spread = timedelta(0) if scheduling.full_sync_at is not None else default.full_sync_spread
    if full_at is not None:
        # The first sync reads everything anyway.
        last_full = scheduling.full_requested_at or scheduling.requested_at
        share = _share(organization_id, "full", spread)
        if last_full is not None and last_full < _last_night(now, full_at, share, time_zone(scheduling.time_zone)):
            return DueSync(organization_id, is_full=True)
    every = scheduling.sync_every_minutes or default.sync_every_minutes
    is_scheduled = every is not None or full_at is not None
    if is_scheduled and scheduling.retry_at is not None and scheduling.retry_at <= now:
        return DueSync(organization_id, is_full=False)
    if every is None:
        return None
    period = timedelta(minutes=every)
    turn = _last_turn(now, period, _share(organization_id, "sync", period))
    if scheduling.requested_at is None or scheduling.requested_at < turn:
        return DueSync(organization_id, is_full=False)
    return None


def _last_turn(now: datetime, period: timedelta, offset: timedelta) -> datetime:
    """The last instant up to `now` that is `offset` after a multiple of `period` since 1970."""
    epoch = datetime(1970, 1, 1, tzinfo=now.tzinfo)
    return now - (now - epoch - offset) % period


def _last_night(now: datetime, begins: time, share: timedelta, zone: tzinfo) -> datetime:
    """Return the last instant up to `now` that is `share` after the local time `begins` of a date.

    Each date has one: a local time that is left out is reckoned as if the clock had not been changed, and of one that
    comes twice the first counts. A date that is left out has the instant of the next.
    """
    today = now.astimezone(zone).date()
    nights = (datetime.combine(today + days * DAY, begins, zone).astimezone(UTC) + share for days in range(-3, 2))
    return max(each for each in nights if each <= now)


def _share(organization_id: str, what: str, whole: timedelta) -> timedelta:
    """The organization's own part of the time, the same on every machine."""
    digest = sha256(f"{what} {organization_id}".encode()).digest()
    return whole * (int.from_bytes(digest[:8]) / 2**64)
