"""`cliniko.alerts` and `cliniko.notices`: what is wrong and was told, and what is still to be sent.

The operator's own tables: everything here runs in an operator's transaction (`Database.operator`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import advisory_key, sql


@dataclass(frozen=True)
class Alert:
    """Something that is wrong with an organization, and was told.

    Attributes:
        name: what there can be one of at a time, e.g. `sync` or the name of a check.
        kind: what kind of trouble, e.g. `paused`.
        reason: as it was told last.
        raised_at, told_at: when it was first and last told, UTC.
    """

    organization_id: str
    name: str
    kind: str
    reason: str
    raised_at: datetime
    told_at: datetime


@dataclass(frozen=True)
class Notice:
    """A message to the operator, without a secret or a patient's data."""

    kind: str
    title: str
    body: str


@dataclass(frozen=True)
class WaitingNotice:
    """A notice that a channel, named by a digest, has not taken yet."""

    id: int
    channel: str
    notice: Notice


def take_turn(connection: Connection) -> None:
    """Has one process at a time decide what is told, until the end of the transaction."""
    connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": advisory_key("cliniko_pipeline.alerts")})


def open_alerts(connection: Connection) -> list[Alert]:
    """All that is wrong as far as it was told."""
    rows = connection.execute(
        sa.text(
            "select organization_id, name, kind, reason, raised_at, told_at from cliniko.alerts"
            " order by organization_id, name"
        )
    )
    return [Alert(**row) for row in rows.mappings()]


def save_alerts(connection: Connection, told: Sequence[Alert]) -> None:
    """Notes that these were told."""
    if told:
        connection.execute(sa.text(sql("alerts/save_alert")), [asdict(each) for each in told])


def delete_alerts(connection: Connection, over: Iterable[Alert]) -> None:
    """Notes that these are over."""
    keys = [{"organization_id": each.organization_id, "name": each.name} for each in over]
    if keys:
        connection.execute(
            sa.text("delete from cliniko.alerts where organization_id = :organization_id and name = :name"), keys
        )


def add_notices(connection: Connection, channels: Iterable[str], notices: Sequence[Notice]) -> None:
    """Puts the notices down for each channel."""
    rows = [{"channel": channel, **asdict(notice)} for channel in channels for notice in notices]
    if rows:
        connection.execute(
            sa.text("insert into cliniko.notices (channel, kind, title, body) values (:channel, :kind, :title, :body)"),
            rows,
        )


def waiting_notices(connection: Connection) -> list[WaitingNotice]:
    """Those whose time to be sent, or sent again, has come; the oldest first, and none before an older one of its
    channel.
    """
    rows = connection.execute(sa.text(sql("alerts/waiting_notices")))
    return [WaitingNotice(row.id, row.channel, Notice(row.kind, row.title, row.body)) for row in rows]


def delete_notice(connection: Connection, notice_id: int) -> None:
    """It was sent, or there is nobody left to send it to."""
    connection.execute(sa.text("delete from cliniko.notices where id = :id"), {"id": notice_id})


def delay_notice(connection: Connection, notice_id: int) -> None:
    """It could not be sent: it is tried again, later each time, for two days."""
    connection.execute(sa.text(sql("alerts/delay_notice")), {"id": notice_id})
    connection.execute(
        sa.text("delete from cliniko.notices where id = :id and created_at < now() - interval '2 days'"),
        {"id": notice_id},
    )
