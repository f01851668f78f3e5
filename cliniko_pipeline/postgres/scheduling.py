"""`cliniko.scheduling`: when each organization is synced, and which ones are paused.

The operator's own table: everything here runs in an operator's transaction (`Database.operator`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, time

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import sql
from cliniko_pipeline.postgres.organizations import SERVICE


@dataclass(frozen=True)
class Scheduling:
    """How an organization with Cliniko credentials is scheduled. Times are UTC.

    Attributes:
        is_active: false: disabled.
        is_on: false: never synced by the schedule.
        sync_every_minutes, full_sync_at: its own; None: as the settings say.
        requested_at, full_requested_at: when the schedule last requested a run, and one that reads everything.
        retry_at: when a sync that failed for a reason that passes is tried again.
        paused_at, pause_reason: since when, and why, nothing is requested until its credentials change.
    """

    organization_id: str
    is_active: bool
    is_on: bool
    sync_every_minutes: int | None
    full_sync_at: time | None
    requested_at: datetime | None
    full_requested_at: datetime | None
    retry_at: datetime | None
    paused_at: datetime | None
    pause_reason: str | None


def schedulings(connection: Connection) -> list[Scheduling]:
    """Of all organizations, by id. Ends the pauses of those whose credentials have changed."""
    connection.execute(sa.text(sql("end_pauses")), {"service": SERVICE})
    rows = connection.execute(sa.text(sql("scheduling")), {"service": SERVICE}).mappings()
    return [Scheduling(**row) for row in rows]


def set_schedule(
    connection: Connection,
    organization_id: str,
    *,
    is_on: bool | None = None,
    sync_every_minutes: int | None = None,
    full_sync_at: time | None = None,
) -> None:
    """Gives the organization a schedule of its own; what is None stays as it is."""
    connection.execute(
        sa.text(sql("set_schedule")),
        {
            "organization_id": organization_id,
            "is_on": is_on,
            "sync_every_minutes": sync_every_minutes,
            "full_sync_at": full_sync_at,
        },
    )


def use_settings(connection: Connection, organization_id: str) -> None:
    """Takes its own schedule from the organization: the settings hold."""
    connection.execute(
        sa.text(
            "update cliniko.scheduling set is_on = null, sync_every_minutes = null, full_sync_at = null"
            " where organization_id = :organization_id"
        ),
        {"organization_id": organization_id},
    )


def note_requested(connection: Connection, requested: Mapping[str, bool], at: datetime) -> None:
    """Runs were requested of these organizations; the value: whether one that reads everything."""
    if requested:
        connection.execute(
            sa.text(sql("note_requested")),
            [{"organization_id": each, "is_full": is_full, "at": at} for each, is_full in requested.items()],
        )


def note_failure(connection: Connection, organization_id: str) -> None:
    """A sync has failed for a reason that passes: it is tried again, later each time in a row."""
    connection.execute(sa.text(sql("note_failure")), {"organization_id": organization_id})


def note_success(connection: Connection, organization_id: str) -> None:
    """A sync has succeeded: the next failure is the first in a row again, and nothing is left to pause for."""
    connection.execute(
        sa.text(
            "update cliniko.scheduling set failures = 0, retry_at = null,"
            " paused_at = null, pause_reason = null, paused_credentials = null"
            " where organization_id = :organization_id and (failures > 0 or paused_at is not null)"
        ),
        {"organization_id": organization_id},
    )


def pause(connection: Connection, organization_id: str, reason: str) -> None:
    """Nothing is requested of the organization any more until its credentials change or `end_pause`."""
    connection.execute(
        sa.text(sql("pause")), {"organization_id": organization_id, "reason": reason, "service": SERVICE}
    )


def end_pause(connection: Connection, organization_id: str) -> None:
    """Lets the schedule have the organization again."""
    connection.execute(
        sa.text(
            "update cliniko.scheduling set paused_at = null, pause_reason = null, paused_credentials = null"
            " where organization_id = :organization_id"
        ),
        {"organization_id": organization_id},
    )
