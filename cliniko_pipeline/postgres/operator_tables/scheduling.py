"""`cliniko.scheduling`: the schedule, the last result and the pause of each organization."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import is_read_only, sql
from cliniko_pipeline.postgres.operator_tables.organizations import SERVICE

REFUSAL_CONFIRMED_AFTER = timedelta(minutes=5)
"""A refusal is confirmed when Cliniko refuses the credentials again, at least this time after the first refusal."""


@dataclass(frozen=True)
class Scheduling:
    """The schedule and state of an organization with Cliniko credentials. Times are UTC.

    Attributes:
        is_active: whether the organization is enabled.
        is_on: whether the schedule syncs the organization.
        sync_every_minutes: the organization's own interval; None for the interval in the settings.
        full_sync_at: the organization's own time of the daily full sync; None for the time in the settings.
        time_zone: the IANA time zone of `full_sync_at`; None for UTC.
        requested_at: when a sync was last requested.
        full_requested_at: when a full sync was last requested.
        counts_requested_at: when a comparison of counts was last requested.
        known_since: when the organization was first scheduled or last enabled.
        succeeded_at: when a complete sync last succeeded.
        verified_at: the latest instant for which the stored rows are known to be right.
        failures: the number of consecutive failed runs and probes.
        failure_reason: the reason of the last failure since the last success.
        failed_run_id: the run of this failure, or None if a probe failed.
        failure_is_permanent: whether this failure is not retried before the next sync is due.
        retry_at: when a failed sync is retried, if that is before the next sync is due.
        paused_at: since when the organization is paused; None if it is not paused.
        pause_reason: why the organization is paused.
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
    verified_at: datetime | None = None
    failures: int = 0
    failure_reason: str | None = None
    failed_run_id: str | None = None
    failure_is_permanent: bool = False
    retry_at: datetime | None = None
    paused_at: datetime | None = None
    pause_reason: str | None = None


def schedulings(connection: Connection) -> list[Scheduling]:
    """Return the schedulings of all organizations, by id.

    Pauses end where the credentials have changed, unless the database is read-only.
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
    """Set the organization's own schedule. Arguments that are None change nothing."""
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
    """Set the time zone, unless `full_sync_at` or a time zone is set; return the stored one."""
    values = {"organization_id": organization_id, "time_zone": found}
    return connection.execute(sa.text(sql("scheduling/take_time_zone")), values).scalar_one()


def use_settings(connection: Connection, organization_id: str) -> None:
    """Remove the organization's own schedule except its time zone, so that the settings apply."""
    connection.execute(
        sa.text(
            "update cliniko.scheduling set is_on = null, sync_every_minutes = null, full_sync_at = null"
            " where organization_id = :organization_id"
        ),
        {"organization_id": organization_id},
    )


def note_requested(connection: Connection, requested: Mapping[str, bool], at: datetime) -> None:
    """Store that syncs were requested at this time. `requested` tells by id which are full."""
    if requested:
        connection.execute(
            sa.text(sql("scheduling/note_requested")),
            [{"organization_id": id_, "is_full": is_full, "at": at} for id_, is_full in requested.items()],
        )


def note_counts_requested(connection: Connection, organization_ids: Sequence[str], at: datetime) -> None:
    """Store that comparisons of counts were requested at this time."""
    if organization_ids:
        connection.execute(
            sa.text(sql("scheduling/note_counts_requested")),
            [{"organization_id": id_, "at": at} for id_ in organization_ids],
        )


def note_failure(
    connection: Connection,
    organization_id: str,
    *,
    reason: str,
    run_id: str | None,
    started_at: datetime,
    is_permanent: bool,
) -> None:
    """Store the failure of a run or of a probe. After a transient failure, schedule a retry with growing delays."""
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


def note_success(
    connection: Connection,
    organization_id: str,
    *,
    read_began_at: datetime | None = None,
    as_of: datetime | None = None,
) -> None:
    """Store the success of a complete sync, which ends failures and pauses.

    `read_began_at` is when the sync began to read from Cliniko, by the database's clock, or None if it did not read.
    `as_of` is the instant that the rows were computed for, or None for now.
    """
    connection.execute(
        sa.text(sql("scheduling/note_success")),
        {"organization_id": organization_id, "read_began_at": read_began_at, "as_of": as_of},
    )


def note_verified(connection: Connection, verified: Mapping[str, datetime], seen: Mapping[str, Scheduling]) -> None:
    """Store the instants at which probes verified organizations, which ends failures.

    Skip an organization if a sync has succeeded since its scheduling in `seen` was read.
    """
    if verified:
        connection.execute(
            sa.text(sql("scheduling/note_verified")),
            [
                {"organization_id": id_, "at": at, "succeeded_at": seen[id_].succeeded_at}
                for id_, at in verified.items()
            ],
        )


def credentials_digest(connection: Connection, organization_id: str) -> str | None:
    """Return a digest of the stored credentials, or None if there are no credentials."""
    return connection.execute(
        sa.text(
            "select md5(credentials_encrypted::text) from public.api_credentials"
            " where organization_id::text = :organization_id and service_name = :service"
        ),
        {"organization_id": organization_id, "service": SERVICE},
    ).scalar_one_or_none()


def note_refusal(connection: Connection, organization_id: str, *, run_id: str, credentials: str | None) -> bool:
    """Store that Cliniko refused the credentials; return whether this confirms an earlier refusal.

    `credentials` is the digest of the refused credentials. Nothing changes if other credentials are stored now.
    """
    values = {"organization_id": organization_id, "run_id": run_id, "credentials": credentials}
    connection.execute(sa.text(sql("scheduling/note_refusal")), values | {"service": SERVICE})
    is_confirmed = connection.execute(
        sa.text(sql("scheduling/refusal_is_confirmed")), values | {"confirmed_after": REFUSAL_CONFIRMED_AFTER}
    ).scalar_one_or_none()
    return bool(is_confirmed)


def pause(connection: Connection, organization_id: str, *, reason: str, run_id: str, credentials: str | None) -> None:
    """Pause the organization until its credentials change or `end_pause` is called.

    `credentials` is the digest of the failed credentials. Nothing changes if other credentials are stored now.
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
    """End the pause of the organization, or all pauses if None; return the number of changed rows."""
    return connection.execute(sa.text(sql("scheduling/end_pause")), {"organization_id": organization_id}).rowcount
