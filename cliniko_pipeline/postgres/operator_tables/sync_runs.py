"""`cliniko.sync_runs`: one row a run and organization, telling what was done, when, at what cost, and what failed.

Each function is a transaction's worth of work in the organization context that the caller opened, apart from the
data's own transactions: a run that fails must still be told.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import sql, statement
from cliniko_pipeline.sync_options import SYNC_ASSETS


@dataclass(frozen=True)
class OrganizationStatus:
    """Where an organization stands. Times are UTC; None where there was no run yet.

    `unidentified_records` are the rejected ones without an id. `doubtful_deletions` are records that a full sync missed
    and did not believe to be deleted; `full_readings_due` says which resources the next sync reads whole, and why.
    `refused_fields` are texts such as "patients sort id".
    """

    run_id: str | None
    status: str | None
    started_at: datetime | None
    finished_at: datetime | None
    requests: int | None
    seconds_waited: float | None
    error: str | None
    last_success_at: datetime | None
    patients: int
    appointments: int
    attendees: int
    matched: int
    ambiguous: int
    unmatched: int
    active_patients: int
    rejected_records: int
    unidentified_records: int
    doubtful_deletions: int
    full_readings_due: list[str] | None
    refused_fields: list[str] | None
    patients_in_merge_loops: int


@dataclass(frozen=True)
class StoredSync:
    """A run of everything, as far as it has noted itself. Times are UTC.

    Attributes:
        status: running, succeeded or failed.
        is_full: whether it reads everything; None: not noted.
        assets: by asset: status, times, counts and, where it failed, the reason.
        progress: what it was doing when it last noted that; None where it has ended or just begun.
    """

    run_id: str
    status: str
    is_full: bool | None
    started_at: datetime
    finished_at: datetime | None
    requests: int
    seconds_waited: float
    error: str | None
    assets: dict[str, dict[str, Any]]
    progress: dict[str, Any] | None


@dataclass(frozen=True)
class DayOfTrend:
    """How many active patients there were at the end of a day (UTC)."""

    day: date
    active_patients: int


def started(connection: Connection, *, run_id: str, asset: str, planned: Sequence[str], is_full: bool) -> None:
    """An asset of the run has begun; `planned` are all the run is to materialize, and `is_full` whether it reads
    everything.
    """
    connection.execute(
        sa.text(sql("runs/started")),
        {"run_id": run_id, "asset": asset, "planned": list(planned), "is_full": is_full},
    )


def progressed(connection: Connection, *, run_id: str, progress: str) -> None:
    """The run has come so far: a JSON object."""
    connection.execute(statement(sql("runs/progressed")), {"run_id": run_id, "progress": progress})


def finished(
    connection: Connection,
    *,
    run_id: str,
    asset: str,
    counts: Mapping[str, int],
    requests: int,
    seconds_waited: float,
    error: str | None = None,
) -> datetime | None:
    """An asset of the run has ended, well or, with `error` (one line, without secrets), badly. Returns when the run
    began where all that it planned has succeeded with that; None: not yet, or not.
    """
    result = {"status": "succeeded" if error is None else "failed", **counts}
    run = connection.execute(
        sa.text(sql("runs/finished")),
        {
            "run_id": run_id,
            "asset": asset,
            "result": json.dumps(result),
            "requests": requests,
            "seconds_waited": seconds_waited,
            "error": error,
        },
    ).one_or_none()
    return run.started_at if run is not None and run.status == "succeeded" else None


def syncs(connection: Connection, limit: int, before: tuple[datetime, str] | None = None) -> list[StoredSync]:
    """The organization's syncs, the latest first; those before the one with that start and id."""
    before_at, before_id = before or (None, None)
    return _stored_syncs(connection, run_id=None, before_at=before_at, before_id=before_id, limit=limit)


def sync(connection: Connection, run_id: str) -> StoredSync | None:
    """One of them; None: the run has noted nothing, or is none of everything."""
    return next(iter(_stored_syncs(connection, run_id=run_id, before_at=None, before_id=None, limit=1)), None)


def _stored_syncs(connection: Connection, **parameters: object) -> list[StoredSync]:
    rows = connection.execute(statement(sql("runs/syncs")), parameters | {"sync_assets": sorted(SYNC_ASSETS)})
    return [StoredSync(**row) for row in rows.mappings()]


def trend(connection: Connection, days: int) -> list[DayOfTrend]:
    """The organization's active patients on each of the last days on which it was synced."""
    rows = connection.execute(statement(sql("runs/active_patients_trend")), {"days": days}).mappings()
    return [DayOfTrend(**row) for row in rows]


def organization_status(connection: Connection) -> OrganizationStatus:
    """The organization's last run, counts and problems."""
    found = connection.execute(statement(sql("runs/organization_status")), {"sync_assets": sorted(SYNC_ASSETS)})
    return OrganizationStatus(**found.mappings().one())
