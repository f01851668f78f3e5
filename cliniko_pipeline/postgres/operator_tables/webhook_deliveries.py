"""`cliniko.webhook_targets` and `cliniko.webhook_deliveries`: whom an organization's ended syncs are told, and what of
that is still to be sent.

The operator's own tables: all but `ended_runs` runs in an operator's transaction (`Database.operator`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.postgres.engine import advisory_key, sql, statement

KEPT = timedelta(days=30)
"""For so long it is known what became of a delivery."""

LONGEST_RUN = timedelta(hours=25)
"""Dagster ends what goes on for a day; whatever never ended after that is told by nobody."""

_MOST = 100
"""Runs of an organization, and deliveries, at a time."""


@dataclass(frozen=True)
class Target:
    """Where the ended syncs of an organization are told; `encrypted` holds the URL and the secret.

    Attributes:
        set_at: what ended before that is not told.
        looked_until: all runs that began before that have been looked at.
        disabled_at, disabled_reason: since when, and why, nothing is sent there; None: it is.
    """

    organization_id: str
    set_at: datetime
    looked_until: datetime
    disabled_at: datetime | None
    disabled_reason: str | None
    encrypted: object = field(repr=False)


@dataclass(frozen=True)
class EndedRun:
    """A whole run of an organization, as far as it has come; `is_given_up`: it will never end."""

    run_id: str
    status: str
    started_at: datetime
    finished_at: datetime | None
    error: str | None
    assets: Mapping[str, Mapping[str, Any]]
    is_given_up: bool


@dataclass(frozen=True)
class DueDelivery:
    """What is to be sent now; `attempts`: how often that was tried, `set_at`: which target this is."""

    organization_id: str
    run_id: str
    body: str
    attempts: int
    set_at: datetime
    encrypted: object = field(repr=False)


@dataclass(frozen=True)
class Delivery:
    """What became of a delivery: `outcome` of its last attempt, and when the next is to come."""

    run_id: str
    created_at: datetime
    attempts: int
    send_at: datetime | None
    ended_at: datetime | None
    is_taken: bool
    outcome: str | None


def take_turn(connection: Connection) -> bool:
    """Has one process at a time send, until the end of the transaction; false: another one does."""
    key = advisory_key("cliniko_pipeline.webhook_deliveries")
    return connection.execute(statement("select pg_try_advisory_xact_lock(:key)"), {"key": key}).scalar_one()


def set_target(connection: Connection, organization_id: str, encrypted: Mapping[str, str]) -> None:
    """In place of an earlier one; what that has not taken goes here."""
    connection.execute(
        sa.text(sql("webhooks/set_target")).bindparams(sa.bindparam("encrypted", type_=JSONB)),
        {"organization_id": organization_id, "encrypted": dict(encrypted), "longest_run": LONGEST_RUN},
    )


def remove_target(connection: Connection, organization_id: str) -> None:
    """And what is still to be sent there. Raises ArgumentError: there is none."""
    target(connection, organization_id)
    for table in ("cliniko.webhook_targets", "cliniko.webhook_deliveries"):
        connection.execute(sa.text(f"delete from {table} where organization_id = :id"), {"id": organization_id})


def targets(connection: Connection) -> list[Target]:
    """All of them, disabled ones too."""
    rows = connection.execute(statement("select * from cliniko.webhook_targets order by organization_id")).mappings()
    return [Target(**row) for row in rows]


def target(connection: Connection, organization_id: str) -> Target:
    """The organization's. Raises ArgumentError: there is none."""
    for found in targets(connection):
        if found.organization_id == organization_id:
            return found
    raise ArgumentError(
        f"Nobody is told of the syncs of '{organization_id}': `cliniko-pipeline webhooks out set {organization_id} URL`"
        " says who is to be."
    )


def disable_target(connection: Connection, sent: DueDelivery, reason: str) -> bool:
    """Sends nothing any more where that went, until the target is set anew; false: it has been meanwhile."""
    ended = connection.execute(
        sa.text(sql("webhooks/disable_target")),
        {"organization_id": sent.organization_id, "set_at": sent.set_at, "reason": reason},
    )
    return ended.rowcount > 0


def ended_runs(connection: Connection, whole: Collection[str], since: datetime, set_at: datetime) -> list[EndedRun]:
    """The runs, in whose organization's context this is, that planned all of `whole`, began since then and did not end
    before `set_at`; also those that go on. The oldest first, a bounded number.
    """
    rows = connection.execute(
        statement(sql("webhooks/ended_runs")),
        {"whole": sorted(whole), "since": since, "set_at": set_at, "longest_run": LONGEST_RUN, "most": _MOST},
    )
    return [EndedRun(**row) for row in rows.mappings()]


def is_all(found: Collection[EndedRun]) -> bool:
    """Whether there are no more than these."""
    return len(found) < _MOST


def add_delivery(connection: Connection, to: Target, run_id: str, body: str) -> bool:
    """Puts down that the run is to be told; false: it was before, or there is nobody to tell any more."""
    added = connection.execute(
        statement(sql("webhooks/add_delivery")),
        {"organization_id": to.organization_id, "set_at": to.set_at, "run_id": run_id, "body": body},
    )
    return added.rowcount == 1


def put_down_before(connection: Connection, to: Target, run_ids: Collection[str]) -> set[str]:
    """Which of these runs are to be told already, or were."""
    rows = connection.execute(
        statement(
            "select run_id from cliniko.webhook_deliveries where organization_id = :organization_id"
            " and run_id = any(:run_ids)"
        ),
        {"organization_id": to.organization_id, "run_ids": list(run_ids)},
    )
    return set(rows.scalars())


def note_looked_until(connection: Connection, to: Target, oldest_open: datetime | None, lag: timedelta) -> None:
    """All runs have been looked at that began before `oldest_open`; None: all there were. Not noted where what is noted
    lags behind no more than that.
    """
    connection.execute(
        statement(sql("webhooks/note_looked_until")),
        {"organization_id": to.organization_id, "set_at": to.set_at, "oldest_open": oldest_open, "lag": lag},
    )


def due_deliveries(connection: Connection) -> list[DueDelivery]:
    """What is to be sent now, the longest due first; a bounded number."""
    rows = connection.execute(statement(sql("webhooks/due_deliveries")), {"most": _MOST}).mappings()
    return [DueDelivery(**row) for row in rows]


def note_attempt(
    connection: Connection, sent: DueDelivery, outcome: str, *, is_taken: bool, delay: timedelta | None
) -> None:
    """What came of it; after `delay` it is tried again, None: that was the last time."""
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
    """The organization's last, the latest first."""
    rows = connection.execute(
        sa.text(
            "select run_id, created_at, attempts, send_at, ended_at, is_taken, outcome from cliniko.webhook_deliveries"
            " where organization_id = :organization_id order by position desc limit :limit"
        ),
        {"organization_id": organization_id, "limit": limit},
    )
    return [Delivery(**row) for row in rows.mappings()]


def forget_deliveries(connection: Connection) -> None:
    """Those that ended long ago."""
    connection.execute(
        statement("delete from cliniko.webhook_deliveries where ended_at < now() - cast(:kept as interval)"),
        {"kept": KEPT},
    )
