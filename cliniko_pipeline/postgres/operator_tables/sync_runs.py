"""`cliniko.sync_runs`: one row per run and organization, with state, times, cost and errors.

Every function runs in the caller's organization context. The caller's transaction is separate from those of the
data, so that the rows of failed runs are kept.
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
    """The state of an organization. Times are UTC. Values of the run are None before the first run.

    `unidentified_records` are rejected records without an id. `doubtful_deletions` are records that a full sync missed
    but did not mark as deleted. `full_readings_due` are the resources that the next sync crawls in full, with reasons.
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
    """The row of a sync of all assets, running or ended. Times are UTC.

    Attributes:
        status: running, succeeded or failed.
        is_full: whether the sync is full; None if that is unknown.
        assets: status, times, counts and error by asset.
        progress: the last stored progress; None if the sync has ended or has just started.
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
    """The number of active patients at the end of a day (UTC)."""

    day: date
    active_patients: int


def note_started(connection: Connection, *, run_id: str, asset: str, planned: Sequence[str], is_full: bool) -> None:
    """Store that an asset of the run has started. `planned` are all assets of the run."""
    connection.execute(
        sa.text(sql("runs/started")),
        {"run_id": run_id, "asset": asset, "planned": list(planned), "is_full": is_full},
    )


def last_status(connection: Connection) -> str | None:
    """Return the status of the context's organization's latest run, or None if it has none."""
    return connection.execute(
        statement("select status from cliniko.sync_runs order by started_at desc, run_id desc limit 1")
    ).scalar_one_or_none()


def note_progress(connection: Connection, *, run_id: str, progress: str) -> None:
    """Store the progress of a running run. `progress` is a JSON object."""
    connection.execute(
        statement(
            "update cliniko.sync_runs set progress = cast(:progress as jsonb)"
            " where run_id = :run_id and status = 'running'"
        ),
        {"run_id": run_id, "progress": progress},
    )


def note_finished(
    connection: Connection,
    *,
    run_id: str,
    asset: str,
    counts: Mapping[str, int],
    requests: int,
    seconds_waited: float,
    error: str | None = None,
) -> datetime | None:
    """Store that an asset of the run has succeeded or, with `error`, that it has failed.

    `error` is one line without secrets. Return when the run started if all its assets have now succeeded, else None.
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
    """Return syncs of all assets, the latest first. `before` is a later sync's start and run id."""
    before_at, before_id = before or (None, None)
    return _stored_syncs(connection, run_id=None, before_at=before_at, before_id=before_id, limit=limit)


def sync(connection: Connection, run_id: str) -> StoredSync | None:
    """Return the sync of all assets with this run id, or None if there is none yet."""
    return next(iter(_stored_syncs(connection, run_id=run_id, before_at=None, before_id=None, limit=1)), None)


def _stored_syncs(connection: Connection, **parameters: object) -> list[StoredSync]:
    rows = connection.execute(statement(sql("runs/syncs")), parameters | {"sync_assets": sorted(SYNC_ASSETS)})
    return [StoredSync(**row) for row in rows.mappings()]


def trend(connection: Connection, days: int) -> list[DayOfTrend]:
    """Return the numbers of active patients of the last days with a sync."""
    rows = connection.execute(statement(sql("runs/active_patients_trend")), {"days": days}).mappings()
    return [DayOfTrend(**row) for row in rows]


def organization_status(connection: Connection) -> OrganizationStatus:
    """Return the organization's last run, counts and problems."""
    found = connection.execute(statement(sql("runs/organization_status")), {"sync_assets": sorted(SYNC_ASSETS)})
    return OrganizationStatus(**found.mappings().one())
