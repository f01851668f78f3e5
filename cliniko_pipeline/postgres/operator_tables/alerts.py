"""`cliniko.alerts` and `cliniko.notices`: the open alerts and the queued messages."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import advisory_key, sql


@dataclass(frozen=True)
class Alert:
    """A problem about which the operator was notified.

    Attributes:
        name: `sync`, or the asset and name of an asset check. An organization has at most one alert with this name.
        kind: the kind of the problem, e.g. `paused`.
        reason: the text of the last message.
        raised_at: when the first message was queued, UTC.
        told_at: when the last message was queued, UTC.
    """

    organization_id: str
    name: str
    kind: str
    reason: str
    raised_at: datetime
    told_at: datetime


@dataclass(frozen=True)
class Message:
    """A message to the operator, without secrets or patient data."""

    kind: str
    title: str
    body: str


@dataclass(frozen=True)
class QueuedMessage:
    """A message that a channel has not accepted yet. `channel` is the channel's digest."""

    id: int
    channel: str
    message: Message


def lock(connection: Connection) -> None:
    """Wait for a lock that lets only one transaction at a time plan or send messages."""
    connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": advisory_key("cliniko_pipeline.alerts")})


def open_alerts(connection: Connection) -> list[Alert]:
    """Return the open alerts."""
    rows = connection.execute(
        sa.text(
            "select organization_id, name, kind, reason, raised_at, told_at from cliniko.alerts"
            " order by organization_id, name"
        )
    )
    return [Alert(**row) for row in rows.mappings()]


def save_alerts(connection: Connection, alerts: Sequence[Alert]) -> None:
    """Insert or update the alerts."""
    if alerts:
        connection.execute(sa.text(sql("alerts/save_alert")), [asdict(alert) for alert in alerts])


def delete_alerts(connection: Connection, alerts: Iterable[Alert]) -> None:
    """Delete the alerts."""
    keys = [{"organization_id": alert.organization_id, "name": alert.name} for alert in alerts]
    if keys:
        connection.execute(
            sa.text("delete from cliniko.alerts where organization_id = :organization_id and name = :name"), keys
        )


def add_messages(connection: Connection, channels: Iterable[str], messages: Sequence[Message]) -> None:
    """Queue the messages for each channel."""
    rows = [{"channel": channel, **asdict(message)} for channel in channels for message in messages]
    if rows:
        connection.execute(
            sa.text("insert into cliniko.notices (channel, kind, title, body) values (:channel, :kind, :title, :body)"),
            rows,
        )


def due_messages(connection: Connection) -> list[QueuedMessage]:
    """Return the due messages, the oldest first. A message waits for its channel's older messages."""
    rows = connection.execute(sa.text(sql("alerts/due_messages")))
    return [QueuedMessage(row.id, row.channel, Message(row.kind, row.title, row.body)) for row in rows]


def delete_message(connection: Connection, message_id: int) -> None:
    """Delete a message that was sent, or whose channel is no longer configured."""
    connection.execute(sa.text("delete from cliniko.notices where id = :id"), {"id": message_id})


def delay_message(connection: Connection, message_id: int) -> None:
    """Schedule another attempt after a longer delay, or delete a message that is two days old."""
    connection.execute(sa.text(sql("alerts/delay_message")), {"id": message_id})
    connection.execute(
        sa.text("delete from cliniko.notices where id = :id and created_at < now() - interval '2 days'"),
        {"id": message_id},
    )
