"""`cliniko.webhook_targets` and `cliniko.webhook_deliveries`: outgoing webhooks."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.postgres.engine import advisory_key, sql, statement
from cliniko_pipeline.sync_options import SYNC_ASSETS

LONGEST_RUN = timedelta(hours=25)
"""A sync that has not ended after this time gets no delivery. Dagster ends a run after a day."""

BATCH_SIZE = 100
"""The maximum number of an organization's syncs, or of deliveries, that one statement reads."""


@dataclass(frozen=True)
class Target:
    """An organization's webhook target.

    Attributes:
        set_at: when the target was set. Syncs that ended earlier are not delivered.
        looked_until: the checkpoint. All syncs that started earlier have been handled.
        disabled_at: when the target was disabled; None if it is enabled.
        disabled_reason: why the target was disabled.
        encrypted: the encrypted URL and signing secret.
    """

    organization_id: str
    set_at: datetime
    looked_until: datetime
    disabled_at: datetime | None
    disabled_reason: str | None
    encrypted: object = field(repr=False)


@dataclass(frozen=True)
class CompleteSync:
    """A running or ended sync of all assets. `is_given_up` is whether it has exceeded `LONGEST_RUN`."""

    run_id: str
    status: str
    started_at: datetime
    finished_at: datetime | None
    error: str | None
    assets: Mapping[str, Mapping[str, Any]]
    is_given_up: bool


@dataclass(frozen=True)
class DueDelivery:
    """A delivery to send now. `attempts` have failed; `set_at` identifies the target's version."""

    organization_id: str
    run_id: str
    body: str
    attempts: int
    set_at: datetime
    encrypted: object = field(repr=False)


@dataclass(frozen=True)
class Delivery:
    """A delivery. `outcome` describes the last attempt; `send_at` is the time of the next one."""

    run_id: str
    created_at: datetime
    attempts: int
    send_at: datetime | None
    ended_at: datetime | None
    is_taken: bool
    outcome: str | None


def try_lock(connection: Connection) -> bool:
    """Try to get the lock for sending, for this transaction; return whether the lock was free."""
    key = advisory_key("cliniko_pipeline.webhook_deliveries")
    return connection.execute(statement("select pg_try_advisory_xact_lock(:key)"), {"key": key}).scalar_one()


def set_target(connection: Connection, organization_id: str, encrypted: Mapping[str, str]) -> None:
    """Store the target in place of an earlier target. Open deliveries go to the new target."""
    connection.execute(
        sa.text(sql("webhooks/set_target")).bindparams(sa.bindparam("encrypted", type_=JSONB)),
        {"organization_id": organization_id, "encrypted": dict(encrypted), "longest_run": LONGEST_RUN},
    )


def remove_target(connection: Connection, organization_id: str) -> None:
    """Delete the target and its deliveries; raise ArgumentError if there is no target."""
    target(connection, organization_id)
    for table in ("cliniko.webhook_targets", "cliniko.webhook_deliveries"):
        connection.execute(sa.text(f"delete from {table} where organization_id = :id"), {"id": organization_id})


def targets(connection: Connection) -> list[Target]:
    """Return all targets, including disabled targets."""
    rows = connection.execute(statement("select * from cliniko.webhook_targets order by organization_id")).mappings()
    return [Target(**row) for row in rows]


def target(connection: Connection, organization_id: str) -> Target:
    """Return the organization's target; raise ArgumentError if there is no target."""
    for found in targets(connection):
        if found.organization_id == organization_id:
            return found
    raise ArgumentError(
        f"'{organization_id}' has no webhook target: set one with `cliniko-pipeline webhooks out set"
        f" {organization_id} URL`."
    )


def disable_target(connection: Connection, sent: DueDelivery, reason: str) -> bool:
    """Disable the delivery's target; return False if another target has replaced this one."""
    ended = connection.execute(
        sa.text(sql("webhooks/disable_target")),
        {"organization_id": sent.organization_id, "set_at": sent.set_at, "reason": reason},
    )
    return ended.rowcount > 0


def complete_syncs(connection: Connection, since: datetime, set_at: datetime) -> list[CompleteSync]:
    """Return complete syncs of the context's organization that started at `since` or later.

    The oldest syncs come first, at most `BATCH_SIZE`. Running syncs are included. Syncs that ended before `set_at` are
    left out.
    """
    rows = connection.execute(
        statement(sql("webhooks/complete_syncs")),
        {
            "sync_assets": sorted(SYNC_ASSETS),
            "since": since,
            "set_at": set_at,
            "longest_run": LONGEST_RUN,
            "batch_size": BATCH_SIZE,
        },
    )
    return [CompleteSync(**row) for row in rows.mappings()]


def is_full_batch(found: Collection[CompleteSync]) -> bool:
    """Return whether there may be more syncs than the found ones."""
    return len(found) >= BATCH_SIZE


def add_delivery(connection: Connection, to: Target, run_id: str, body: str) -> bool:
    """Enqueue a delivery; return False if it exists or its target was replaced, disabled or removed."""
    added = connection.execute(
        statement(sql("webhooks/add_delivery")),
        {"organization_id": to.organization_id, "set_at": to.set_at, "run_id": run_id, "body": body},
    )
    return added.rowcount == 1


def enqueued_run_ids(connection: Connection, to: Target, run_ids: Collection[str]) -> set[str]:
    """Return the ids of the runs that have a delivery, whether it was sent or not."""
    rows = connection.execute(
        statement(
            "select run_id from cliniko.webhook_deliveries where organization_id = :organization_id"
            " and run_id = any(:run_ids)"
        ),
        {"organization_id": to.organization_id, "run_ids": list(run_ids)},
    )
    return set(rows.scalars())


def advance_looked_until(connection: Connection, to: Target, oldest: datetime | None, max_lag: timedelta) -> None:
    """Move the target's checkpoint to `oldest`, the start of the oldest unfinished sync.

    If `oldest` is None, the checkpoint moves to the present. A checkpoint that lags by at most `max_lag` is not moved.
    """
    connection.execute(
        statement(sql("webhooks/advance_looked_until")),
        {"organization_id": to.organization_id, "set_at": to.set_at, "oldest": oldest, "max_lag": max_lag},
    )


def due_deliveries(connection: Connection) -> list[DueDelivery]:
    """Return at most `BATCH_SIZE` due deliveries, alternating between organizations, the oldest first."""
    rows = connection.execute(statement(sql("webhooks/due_deliveries")), {"batch_size": BATCH_SIZE}).mappings()
    return [DueDelivery(**row) for row in rows]


def note_attempt(
    connection: Connection, sent: DueDelivery, outcome: str, *, is_taken: bool, delay: timedelta | None
) -> None:
    """Store the result of an attempt. The next attempt is after `delay`; None means no further attempt."""
    connection.execute(
        statement(sql("webhooks/note_attempt")),
        {
            "organization_id": sent.organization_id,
            "run_id": sent.run_id,
            "outcome": outcome,
            "is_taken": is_taken,
            "delay": delay,
        },
    )


def deliveries(connection: Connection, organization_id: str, limit: int) -> list[Delivery]:
    """Return the organization's deliveries, the latest first."""
    rows = connection.execute(
        sa.text(
            "select run_id, created_at, attempts, send_at, ended_at, is_taken, outcome from cliniko.webhook_deliveries"
            " where organization_id = :organization_id order by position desc limit :limit"
        ),
        {"organization_id": organization_id, "limit": limit},
    )
    return [Delivery(**row) for row in rows.mappings()]
