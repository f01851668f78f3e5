"""Which syncs webhooks ask for, and what is told of those that have ended. Pure: decides, does nothing."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cliniko_pipeline.postgres.operator_tables.scheduling import Scheduling
from cliniko_pipeline.postgres.operator_tables.webhook_deliveries import EndedRun
from cliniko_pipeline.postgres.operator_tables.webhooks import PendingEvents

BETWEEN_RUNS = timedelta(seconds=10)
"""From one request of an organization to the next, at least."""

AGAIN = timedelta(hours=1)
"""After that time a run is requested again that nothing came of and that nothing else repeats: one that an operator
ended, or that failed for a reason that does not pass by itself."""

DELAYS = (
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
    timedelta(hours=20),
    timedelta(hours=24),
)
"""From an attempt that failed to the next, as Standard Webhooks has them; after three days it is given up."""

_COUNTED = ("records", "rejected", "inserted", "updated", "deleted")


@dataclass(frozen=True)
class AnnouncedSync:
    """A sync to be requested; what has the same key is the same request."""

    organization_id: str
    run_key: str


def announced_syncs(
    pending: Mapping[str, PendingEvents], schedulings: Iterable[Scheduling], in_flight: Collection[str], now: datetime
) -> list[AnnouncedSync]:
    """Which syncs are to be requested at `now` (aware, UTC): one an organization at most, whether or not the schedule
    syncs it.

    None while one goes on: the next comes when that has ended, if it began too early to know of everything. None
    before what has failed is to be tried again.
    """
    return [
        AnnouncedSync(each.organization_id, _key(pending[each.organization_id], each.failures, now))
        for each in schedulings
        if each.organization_id in pending
        if each.is_active and each.paused_at is None and each.organization_id not in in_flight
        if each.retry_at is None or each.retry_at <= now
        if not _is_within(each.requested_at, AGAIN if each.failure_is_permanent else BETWEEN_RUNS, now)
    ]


def ended(run: EndedRun, organization_id: str) -> str:
    """What is told of a run that has ended: counts and reasons."""
    finished_at = run.finished_at or run.started_at
    counts = {
        asset: {name: result[name] for name in _COUNTED if isinstance(result.get(name), int)}
        for asset, result in sorted(run.assets.items())
    }
    return _message(
        f"sync.{run.status}",
        finished_at,
        {
            "organization_id": organization_id,
            "sync_id": run.run_id,
            "status": run.status,
            "started_at": _instant(run.started_at),
            "finished_at": _instant(finished_at),
            "counts": counts,
            "error": run.error,
        },
    )


def trial(organization_id: str, now: datetime) -> str:
    """What is sent for a test."""
    return _message("test", now, {"organization_id": organization_id})


def delay_after(attempts: int) -> timedelta | None:
    """How long to wait after so many attempts that failed; None: it is given up."""
    return DELAYS[attempts - 1] if attempts <= len(DELAYS) else None


def _key(pending: PendingEvents, failures: int, now: datetime) -> str:
    waited = (now - pending.received_at) // AGAIN
    return f"{pending.organization_id} {pending.received_at.isoformat()} {failures} {max(waited, 0)}"


def _is_within(since: datetime | None, time: timedelta, now: datetime) -> bool:
    """False, too, for what is to have happened in the future, by another clock."""
    return since is not None and timedelta(0) <= now - since < time


def _message(kind: str, at: datetime, data: Mapping[str, Any]) -> str:
    return json.dumps({"type": kind, "timestamp": _instant(at), "data": data}, separators=(",", ":"))


def _instant(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")
