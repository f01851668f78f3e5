"""`cliniko.sync_runs`: one row a run and organization, telling what was done, when, at what cost, and what failed.

Each function is a transaction's worth of work in the organization context that the caller opened, apart from the
data's own transactions: a run that fails must still be told.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import sql


@dataclass(frozen=True)
class OrganizationStatus:
    """Where an organization stands. Times are UTC; None where there was no run yet.

    `doubtful_deletions` are records that a full sync missed and did not believe to be deleted; `full_readings_due` says
    which resources the next sync reads whole, and why.
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
    doubtful_deletions: int
    full_readings_due: list[str] | None
    patients_in_merge_loops: int


def started(connection: Connection, *, run_id: str, asset: str, planned: Sequence[str]) -> None:
    """An asset of the run has begun; `planned` are all the run is to materialize."""
    connection.execute(sa.text(sql("sync_run_started")), {"run_id": run_id, "asset": asset, "planned": list(planned)})


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
        sa.text(sql("sync_run_finished")),
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


def organization_status(connection: Connection) -> OrganizationStatus:
    """The organization's last run, counts and problems."""
    row = connection.execute(sa.text(sql("organization_status"))).mappings().one()
    return OrganizationStatus(**row)
