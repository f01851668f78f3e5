"""`cliniko.webhook_targets` and `cliniko.webhook_deliveries`: the outgoing webhooks of each organization."""

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

RETENTION = timedelta(days=30)
"""How long ended deliveries are kept."""

LONGEST_RUN = timedelta(hours=25)
"""Dagster ends a run after a day. A sync that has not ended after this time gets no delivery."""

BATCH_SIZE = 100
"""Syncs of an organization, and deliveries, per statement."""


@dataclass(frozen=True)
class Target:
    """An organization's webhook target.

    Attributes:
        set_at: syncs that ended earlier are not delivered.
        looked_until: the checkpoint; all syncs that started earlier have been handled.
        disabled_at, disabled_reason: since when and why nothing is sent; None: the target is enabled.
        encrypted: the URL and the signing secret.
    """

    organization_id: str
    set_at: datetime
    looked_until: datetime
    disabled_at: datetime | None
    disabled_reason: str | None
    encrypted: object = field(repr=False)


@dataclass(frozen=True)
class CompleteSync:
    """A sync of all assets, running or ended. `is_given_up`: it has exceeded `LONGEST_RUN`."""

    run_id: str
    status: str
    started_at: datetime
    finished_at: datetime | None
    error: str | None
    assets: Mapping[str, Mapping[str, Any]]
    is_given_up: bool


@dataclass(frozen=True)
class DueDelivery:
    """A delivery to send now. `attempts` counts the earlier ones; `set_at` identifies the target's version."""

    organization_id: str
    run_id: str
    body: str
    attempts: int
    set_at: datetime
    encrypted: object = field(repr=False)


@dataclass(frozen=True)
class Delivery:
    """The state of a delivery: the `outcome` of its last attempt, and when the next one is due."""

    run_id: str
    created_at: datetime
    attempts: int
    send_at: datetime | None
    ended_at: datetime | None
    is_taken: bool
    outcome: str | None


def try_lock(connection: Connection) -> bool:
    """Try to become the only process that sends, until the transaction ends; return whether that succeeded."""
    key = advisory_key("cliniko_pipeline.webhook_deliveries")
    return connection.execute(statement("select pg_try_advisory_xact_lock(:key)"), {"key": key}).scalar_one()


def set_target(connection: Connection, organization_id: str, encrypted: Mapping[str, str]) -> None:
    """Store the target in place of an earlier one. It also gets the deliveries that the earlier one has not taken."""
    connection.execute(
        sa.text(sql("webhooks/set_target")).bindparams(sa.bindparam("encrypted", type_=JSONB)),
        {"organization_id": organization_id, "encrypted": dict(encrypted), "longest_run": LONGEST_RUN},
    )


def remove_target(connection: Connection, organization_id: str) -> None:
    """Delete the target and its deliveries. Raise ArgumentError if there is none."""
    target(connection, organization_id)
    for table in ("cliniko.webhook_targets", "cliniko.webhook_deliveries"):
        connection.execute(sa.text(f"delete from {table} where organization_id = :id"), {"id": organization_id})


def targets(connection: Connection) -> list[Target]:
    """Return all targets, disabled ones included."""
    rows = connection.execute(statement("select * from cliniko.webhook_targets order by organization_id")).mappings()
    return [Target(**row) for row in rows]


def target(connection: Connection, organization_id: str) -> Target:
    """Return the organization's target. Raise ArgumentError if there is none."""
    for found in targets(connection):
        if found.organization_id == organization_id:
            return found
    raise ArgumentError(
        f"'{organization_id}' has no webhook target: set one with `cliniko-pipeline webhooks out set"
        f" {organization_id} URL`."
    )


def disable_target(connection: Connection, sent: DueDelivery, reason: str) -> bool:
    """Disable the target of this delivery; return false if it has been replaced since."""
    ended = connection.execute(
        sa.text(sql("webhooks/disable_target")),
        {"organization_id": sent.organization_id, "set_at": sent.set_at, "reason": reason},
    )
    return ended.rowcount > 0


def complete_syncs(connection: Connection, since: datetime, set_at: datetime) -> list[CompleteSync]:
    """Return the context's complete syncs that started since then, the oldest first, `BATCH_SIZE` at most.

    Syncs that ended before `set_at` are left out; running ones are included.
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
    """Return whether there may be more syncs than these."""
    return len(found) >= BATCH_SIZE


def add_delivery(connection: Connection, to: Target, run_id: str, body: str) -> bool:
    """Enqueue the delivery. Return false if it exists, or if the target was replaced, disabled or removed."""
    added = connection.execute(
        statement(sql("webhooks/add_delivery")),
        {"organization_id": to.organization_id, "set_at": to.set_at, "run_id": run_id, "body": body},
    )
    return added.rowcount == 1


def enqueued_run_ids(connection: Connection, to: Target, run_ids: Collection[str]) -> set[str]:
    """Return those of the runs that have a delivery, sent or not."""
    rows = connection.execute(
        statement(
            "select run_id from cliniko.webhook_deliveries where organization_id = :organization_id"
            " and run_id = any(:run_ids)"
        ),
        {"organization_id": to.organization_id, "run_ids": list(run_ids)},
    )
    return set(rows.scalars())


def advance_looked_until(connection: Connection, to: Target, oldest: datetime | None, max_lag: timedelta) -> None:
    """Move the target's checkpoint to `oldest`, the start of the oldest unfinished sync; None: to the present.

    A checkpoint that lags by `max_lag` or less stays.
    """
    connection.execute(
        statement(sql("webhooks/advance_looked_until")),
        {"organization_id": to.organization_id, "set_at": to.set_at, "oldest": oldest, "max_lag": max_lag},
    )


def due_deliveries(connection: Connection) -> list[DueDelivery]:
    """Return the due deliveries, the longest due first, `BATCH_SIZE` at most."""
    rows = connection.execute(statement(sql("webhooks/due_deliveries")), {"batch_size": BATCH_SIZE}).mappings()
    return [DueDelivery(**row) for row in rows]


def note_attempt(
    connection: Connection, sent: DueDelivery, outcome: str, *, is_taken: bool, delay: timedelta | None
) -> None:
    """Store the result of an attempt. The next one comes after `delay`; None: there is none."""
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


def delete_old_deliveries(connection: Connection) -> None:
    """Delete the deliveries that ended longer ago than `RETENTION`."""
    connection.execute(
        statement("delete from cliniko.webhook_deliveries where ended_at < now() - cast(:retention as interval)"),
        {"retention": RETENTION},
    )
