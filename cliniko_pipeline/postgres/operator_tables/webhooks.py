"""`cliniko.webhook_secrets` and `cliniko.webhook_events`: who may say that an organization's account has changed, and
what was said and is not synced yet.

The operator's own tables: everything here runs in an operator's transaction (`Database.operator`). Secrets come and go
encrypted: to open them is the vault's business.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.postgres.engine import sql, statement
from cliniko_pipeline.postgres.operator_tables.organizations import SERVICE

MOST_SECRETS = 10
"""Of an organization: whoever sends a webhook has each of them tried."""

KEPT = timedelta(days=3)
"""For so long a message that comes again is recognized, whatever became of it."""

_MOST_FORGOTTEN = 10_000
"""At a time."""


@dataclass(frozen=True)
class WebhookSecret:
    """A secret that webhooks of an organization may be signed with, encrypted.

    Attributes:
        id: the part of it that may be shown.
        expires_at: None: never.
        is_valid: whether it has not expired.
    """

    id: str
    organization_id: str
    created_at: datetime
    expires_at: datetime | None
    is_valid: bool
    encrypted: object = field(repr=False)


@dataclass(frozen=True)
class PendingEvents:
    """What was received for an organization since its last whole sync began to read; `received_at` of the latest."""

    organization_id: str
    received_at: datetime
    events: int


def add_secret(connection: Connection, organization_id: str, encrypted: Mapping[str, str]) -> str:
    """Stores a secret beside those there are, and returns its id. Raises ArgumentError where there are too many."""
    # Of two at a time the second counts the first.
    connection.execute(sa.text("lock table cliniko.webhook_secrets in share row exclusive mode"))
    if len(webhook_secrets(connection, organization_id)) >= MOST_SECRETS:
        raise ArgumentError(
            f"'{organization_id}' has {MOST_SECRETS} secrets: revoke one that is no longer used, with"
            f" `cliniko-pipeline webhooks secrets revoke {organization_id} ID`."
        )
    secret_id = secrets.token_hex(6)
    connection.execute(
        sa.text(sql("webhooks/save_secret")).bindparams(sa.bindparam("encrypted", type_=JSONB)),
        {"id": secret_id, "organization_id": organization_id, "encrypted": dict(encrypted)},
    )
    return secret_id


def webhook_secrets(connection: Connection, organization_id: str) -> list[WebhookSecret]:
    """Those of the organization, the oldest first, expired ones too."""
    rows = connection.execute(statement(sql("webhooks/secrets")), {"organization_id": organization_id}).mappings()
    return [WebhookSecret(**row) for row in rows]


def revoke_secret(connection: Connection, organization_id: str, secret_id: str) -> None:
    """Forgets the secret: nothing that is signed with it is taken any more. Raises ArgumentError: there is none."""
    _require_changed(
        connection.execute(
            sa.text("delete from cliniko.webhook_secrets where organization_id = :organization_id and id = :id"),
            {"organization_id": organization_id, "id": secret_id},
        ),
        organization_id,
    )


def expire_secret(connection: Connection, organization_id: str, secret_id: str, after: timedelta) -> None:
    """Lets it be good until then, and no longer. Raises ArgumentError: there is none."""
    _require_changed(
        connection.execute(
            sa.text(
                "update cliniko.webhook_secrets set expires_at = least(expires_at, now() + cast(:after as interval))"
                " where organization_id = :organization_id and id = :id"
            ),
            {"organization_id": organization_id, "id": secret_id, "after": after},
        ),
        organization_id,
    )


def note_event(connection: Connection, organization_id: str, message_id: str, type_: str | None) -> bool:
    """Keeps that something has changed, whatever happens next; false: that message has come before."""
    noted = connection.execute(
        statement(sql("webhooks/note_event")),
        {"organization_id": organization_id, "message_id": message_id, "type": type_},
    )
    return noted.rowcount == 1


def pending_events(connection: Connection) -> dict[str, PendingEvents]:
    """By organization."""
    rows = connection.execute(statement(sql("webhooks/pending_events"))).mappings()
    return {row["organization_id"]: PendingEvents(**row) for row in rows}


def forget_events(connection: Connection) -> int:
    """Deletes those of long ago that nothing hangs on any more; returns how many."""
    parameters = {"kept": KEPT, "service": SERVICE, "most": _MOST_FORGOTTEN}
    return connection.execute(statement(sql("webhooks/forget_events")), parameters).rowcount


def encrypted_values(connection: Connection) -> list[tuple[str, str, object]]:
    """Everything about webhooks that the vault has encrypted: the table, what identifies a row in it, and the value;
    locked until the transaction ends.
    """
    found: list[tuple[str, str, object]] = []
    for table, key in _ENCRYPTED.items():
        rows = connection.execute(sa.text(f"select {key} as key, encrypted from {table} order by {key} for update"))
        found += [(table, row.key, row.encrypted) for row in rows]
    return found


def replace_encrypted(connection: Connection, table: str, key: str, encrypted: Mapping[str, str]) -> None:
    """Stores the same value under another encryption."""
    connection.execute(
        sa.text(f"update {table} set encrypted = :encrypted where {_ENCRYPTED[table]} = :key").bindparams(
            sa.bindparam("encrypted", type_=JSONB)
        ),
        {"encrypted": dict(encrypted), "key": key},
    )


_ENCRYPTED = {"cliniko.webhook_secrets": "id", "cliniko.webhook_targets": "organization_id"}


def _require_changed(changed: sa.CursorResult[object], organization_id: str) -> None:
    if changed.rowcount == 0:
        raise ArgumentError(
            f"'{organization_id}' has no secret of that id: `cliniko-pipeline webhooks secrets list {organization_id}`"
            " shows which there are."
        )
