"""`cliniko.scheduling`: when each organization is synced, and which ones are paused.

The operator's own table: everything here runs in an operator's transaction (`Database.operator`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import is_read_only, sql
from cliniko_pipeline.postgres.operator_tables.organizations import SERVICE

REFUSAL_CONFIRMED_AFTER = timedelta(minutes=5)
"""Credentials that Cliniko refuses count as not working when a run so long after the first refusal is refused, too."""


@dataclass(frozen=True)
class Scheduling:
    """How an organization with Cliniko credentials is scheduled. Instants are UTC.

    Attributes:
        is_active: false: disabled.
        is_on: false: never synced by the schedule.
        sync_every_minutes, full_sync_at: its own; None: as the settings say.
        time_zone: the IANA name of the one whose time full syncs go by; None: UTC.
        requested_at, full_requested_at: when the schedule last requested a run, and one that reads everything.
        counts_requested_at: when it last requested a comparison of counts.
        known_since: when it was first scheduled; None: not yet.
        succeeded_at: when a sync of everything last succeeded.
        failures: how many runs in a row have failed.
        failure_reason, failed_run_id, failure_is_permanent: of the last of them; None and false: none.
        retry_at: when it is tried again before its next turn.
        paused_at, pause_reason: since when, and why, nothing is requested until its credentials change.
    """

    organization_id: str
    is_active: bool = True
    is_on: bool = True
    sync_every_minutes: int | None = None
    full_sync_at: time | None = None
    time_zone: str | None = None
    requested_at: datetime | None = None
    full_requested_at: datetime | None = None
    counts_requested_at: datetime | None = None
    known_since: datetime | None = None
    succeeded_at: datetime | None = None
    failures: int = 0
    failure_reason: str | None = None
    failed_run_id: str | None = None
    failure_is_permanent: bool = False
    retry_at: datetime | None = None
    paused_at: datetime | None = None
    pause_reason: str | None = None


def schedulings(connection: Connection) -> list[Scheduling]:
    """Of all organizations, by id. Ends the pauses of those whose credentials have changed, where the database
    takes writes.
    """
    if not is_read_only(connection):
        connection.execute(sa.text(sql("scheduling/end_pauses")), {"service": SERVICE})
    rows = connection.execute(sa.text(sql("scheduling/scheduling")), {"service": SERVICE}).mappings()
    return [Scheduling(**row) for row in rows]


def set_schedule(
    connection: Connection,
    organization_id: str,
    *,
    is_on: bool | None = None,
    sync_every_minutes: int | None = None,
    full_sync_at: time | None = None,
    time_zone: str | None = None,
) -> None:
    """Gives the organization a schedule of its own; what is None stays as it is."""
    connection.execute(
        sa.text(sql("scheduling/set_schedule")),
        {
            "organization_id": organization_id,
            "is_on": is_on,
            "sync_every_minutes": sync_every_minutes,
            "full_sync_at": full_sync_at,
            "time_zone": time_zone,
        },
    )


def take_time_zone(connection: Connection, organization_id: str, found: str | None) -> str | None:
    """Give the organization the time zone found, unless it has one or a time of its own in UTC; return what it has."""
    values = {"organization_id": organization_id, "time_zone": found}
    return connection.execute(sa.text(sql("scheduling/take_time_zone")), values).scalar_one()


def use_settings(connection: Connection, organization_id: str) -> None:
    """Takes its own schedule from the organization, but for its time zone: the settings hold."""
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
            sa.text(sql("scheduling/note_requested")),
            [{"organization_id": each, "is_full": is_full, "at": at} for each, is_full in requested.items()],
        )


def note_counts_requested(connection: Connection, organization_ids: Sequence[str], at: datetime) -> None:
    """Comparisons of counts were requested of these organizations."""
    if organization_ids:
        connection.execute(
            sa.text(sql("scheduling/note_counts_requested")),
            [{"organization_id": each, "at": at} for each in organization_ids],
        )


def note_failure(
    connection: Connection, organization_id: str, *, reason: str, run_id: str, started_at: datetime, is_permanent: bool
) -> None:
    """A run that began then has failed. Where the reason passes, it is tried again, later each time in a row."""
    connection.execute(
        sa.text(sql("scheduling/note_failure")),
        {
            "organization_id": organization_id,
            "reason": reason,
            "run_id": run_id,
            "started_at": started_at,
            "is_permanent": is_permanent,
            "service": SERVICE,
        },
    )


def note_success(connection: Connection, organization_id: str, *, read_began_at: datetime | None = None) -> None:
    """A sync of everything has succeeded: what went wrong before is over. `read_began_at` is when it began to read, by
    the database's clock; None: it did not read itself.
    """
    connection.execute(
        sa.text(sql("scheduling/note_success")), {"organization_id": organization_id, "read_began_at": read_began_at}
    )


def credentials_digest(connection: Connection, organization_id: str) -> str | None:
    """What the stored credentials are recognized by; None: there are none."""
    return connection.execute(
        sa.text(
            "select md5(credentials_encrypted::text) from public.api_credentials"
            " where organization_id::text = :organization_id and service_name = :service"
        ),
        {"organization_id": organization_id, "service": SERVICE},
    ).scalar_one_or_none()


def note_refusal(connection: Connection, organization_id: str, *, run_id: str, credentials: str | None) -> bool:
    """Note that Cliniko refused the credentials; return whether it did so in an earlier run, too.

    `credentials` is the digest of those that were refused; where others are stored by now, nothing is noted.
    """
    values = {"organization_id": organization_id, "run_id": run_id, "credentials": credentials}
    connection.execute(sa.text(sql("scheduling/note_refusal")), values | {"service": SERVICE})
    is_confirmed = connection.execute(
        sa.text(sql("scheduling/refusal_is_confirmed")), values | {"confirmed_after": REFUSAL_CONFIRMED_AFTER}
    ).scalar_one_or_none()
    return bool(is_confirmed)


def pause(connection: Connection, organization_id: str, *, reason: str, run_id: str, credentials: str | None) -> None:
    """Nothing is requested of the organization any more until its credentials change or `end_pause`. `credentials` is
    the digest of those that did not work; where others are stored by now, nothing is paused.
    """
    connection.execute(
        sa.text(sql("scheduling/pause")),
        {
            "organization_id": organization_id,
            "reason": reason,
            "run_id": run_id,
            "credentials": credentials,
            "service": SERVICE,
        },
    )


def end_pause(connection: Connection, organization_id: str | None) -> int:
    """Lets the schedule have the organization again, or, None, all that are paused; returns how many were."""
    return connection.execute(sa.text(sql("scheduling/end_pause")), {"organization_id": organization_id}).rowcount
