"""Pure functions for syncs that webhook events request, and for deliveries of results."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cliniko_pipeline.postgres.operator_tables.scheduling import Scheduling
from cliniko_pipeline.postgres.operator_tables.webhook_deliveries import CompleteSync
from cliniko_pipeline.postgres.operator_tables.webhooks import PendingEvents

MIN_REQUEST_INTERVAL = timedelta(seconds=10)
"""The shortest time between two requested syncs of an organization."""

REPEAT_INTERVAL = timedelta(hours=1)
"""The time after which a sync is requested again if an operator ended it or it failed permanently."""

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
"""The delays between attempts, as Standard Webhooks recommends. A delivery is given up after three days."""

_COUNTS = ("records", "rejected", "inserted", "updated", "deleted")


@dataclass(frozen=True)
class AnnouncedSync:
    """A sync to request. Dagster launches only one run per `run_key`.

    Attributes:
        is_first: whether no earlier sync has succeeded, so that this one may read everything.
    """

    organization_id: str
    run_key: str
    is_first: bool


def announced_syncs(
    pending: Mapping[str, PendingEvents], schedulings: Iterable[Scheduling], in_flight: Collection[str], now: datetime
) -> list[AnnouncedSync]:
    """Return the syncs to request at `now` (aware, UTC), at most one per organization.

    Organizations need no schedule. An organization is left out while it is paused, while it has a run in flight, until
    a scheduled retry is due, and for some time after its last requested sync.
    """
    return [
        AnnouncedSync(
            state.organization_id,
            _run_key(pending[state.organization_id], state.failures, now),
            is_first=state.succeeded_at is None,
        )
        for state in schedulings
        if state.organization_id in pending
        if state.is_active and state.paused_at is None and state.organization_id not in in_flight
        if state.retry_at is None or state.retry_at <= now
        if not _is_within(
            state.requested_at, REPEAT_INTERVAL if state.failure_is_permanent else MIN_REQUEST_INTERVAL, now
        )
    ]


def sync_message(sync: CompleteSync, organization_id: str) -> str:
    """Return the body of a delivery, which has the counts and the error of an ended sync."""
    finished_at = sync.finished_at or sync.started_at
    counts = {
        asset: {name: result[name] for name in _COUNTS if isinstance(result.get(name), int)}
        for asset, result in sorted(sync.assets.items())
    }
    return _message(
        f"sync.{sync.status}",
        finished_at,
        {
            "organization_id": organization_id,
            "sync_id": sync.run_id,
            "status": sync.status,
            "started_at": _instant(sync.started_at),
            "finished_at": _instant(finished_at),
            "counts": counts,
            "error": sync.error,
        },
    )


def trial_message(organization_id: str, now: datetime) -> str:
    """Return the body of a delivery of type `test`."""
    return _message("test", now, {"organization_id": organization_id})


def delay_after(attempts: int) -> timedelta | None:
    """Return the delay after this number of failed attempts. None means: give up the delivery."""
    return DELAYS[attempts - 1] if attempts <= len(DELAYS) else None


def _run_key(pending: PendingEvents, failures: int, now: datetime) -> str:
    waited = (now - pending.received_at) // REPEAT_INTERVAL
    return f"{pending.organization_id} {pending.received_at.isoformat()} {failures} {max(waited, 0)}"


def _is_within(since: datetime | None, time: timedelta, now: datetime) -> bool:
    """Return whether `since` is less than `time` ago. If it is later than `now`, a clock was wrong."""
    return since is not None and timedelta(0) <= now - since < time


def _message(kind: str, at: datetime, data: Mapping[str, Any]) -> str:
    return json.dumps({"type": kind, "timestamp": _instant(at), "data": data}, separators=(",", ":"))


def _instant(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")
