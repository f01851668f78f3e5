"""`cliniko.webhook_secrets` and `cliniko.webhook_events`: incoming webhooks.

Secrets are encrypted here, and only the vault decrypts them.
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

MAX_SECRETS = 10
"""The maximum number of an organization's secrets. All of them are tried on a received webhook."""

_ENCRYPTED = {"cliniko.webhook_secrets": "id", "cliniko.webhook_targets": "organization_id"}
"""The tables with encrypted values, and the columns that identify their rows."""


@dataclass(frozen=True)
class WebhookSecret:
    """A secret that signs webhooks of an organization.

    Attributes:
        id: the secret's id, which may be shown.
        expires_at: when the secret expires; None for never.
        is_valid: whether the secret is still valid, by the database's clock.
    """

    id: str
    organization_id: str
    created_at: datetime
    expires_at: datetime | None
    is_valid: bool
    encrypted: object = field(repr=False)


@dataclass(frozen=True)
class PendingEvents:
    """The number of events since the organization's last successful sync began to read.

    `received_at` is when the latest of these events was received.
    """

    organization_id: str
    received_at: datetime
    events: int


def add_secret(connection: Connection, organization_id: str, encrypted: Mapping[str, str]) -> str:
    """Store another secret; return its id. Raise ArgumentError beyond `MAX_SECRETS` secrets."""
    # Without the lock, concurrent calls would not count each other's secrets.
    connection.execute(sa.text("lock table cliniko.webhook_secrets in share row exclusive mode"))
    if len(webhook_secrets(connection, organization_id)) >= MAX_SECRETS:
        raise ArgumentError(
            f"'{organization_id}' has {MAX_SECRETS} secrets: revoke one that is no longer used, with"
            f" `cliniko-pipeline webhooks secrets revoke {organization_id} ID`."
        )
    secret_id = secrets.token_hex(6)
    connection.execute(
        sa.text(
            "insert into cliniko.webhook_secrets (id, organization_id, encrypted)"
            " values (:id, :organization_id, :encrypted)"
        ).bindparams(sa.bindparam("encrypted", type_=JSONB)),
        {"id": secret_id, "organization_id": organization_id, "encrypted": dict(encrypted)},
    )
    return secret_id


def webhook_secrets(connection: Connection, organization_id: str) -> list[WebhookSecret]:
    """Return the organization's secrets, the oldest first, including expired secrets."""
    rows = connection.execute(statement(sql("webhooks/secrets")), {"organization_id": organization_id}).mappings()
    return [WebhookSecret(**row) for row in rows]


def revoke_secret(connection: Connection, organization_id: str, secret_id: str) -> None:
    """Delete the secret; raise ArgumentError if there is no secret with this id."""
    _require_changed(
        connection.execute(
            sa.text("delete from cliniko.webhook_secrets where organization_id = :organization_id and id = :id"),
            {"organization_id": organization_id, "id": secret_id},
        ),
        organization_id,
    )


def expire_secret(connection: Connection, organization_id: str, secret_id: str, after: timedelta) -> None:
    """Let the secret expire after this time at the latest; raise ArgumentError for an unknown id."""
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
    """Store a received event; return whether its message id is new."""
    noted = connection.execute(
        statement(
            "insert into cliniko.webhook_events (organization_id, message_id, type)"
            " values (:organization_id, :message_id, :type) on conflict (organization_id, message_id) do nothing"
        ),
        {"organization_id": organization_id, "message_id": message_id, "type": type_},
    )
    return noted.rowcount == 1


def pending_events(connection: Connection) -> dict[str, PendingEvents]:
    """Return the pending events by organization."""
    rows = connection.execute(statement(sql("webhooks/pending_events"))).mappings()
    return {row["organization_id"]: PendingEvents(**row) for row in rows}


def encrypted_values(connection: Connection) -> list[tuple[str, str, object]]:
    """Return (table, key, encrypted value) of all encrypted values, and lock their rows."""
    found: list[tuple[str, str, object]] = []
    for table, key in _ENCRYPTED.items():
        rows = connection.execute(sa.text(f"select {key} as key, encrypted from {table} order by {key} for update"))
        found += [(table, row.key, row.encrypted) for row in rows]
    return found


def replace_encrypted(connection: Connection, table: str, key: str, encrypted: Mapping[str, str]) -> None:
    """Store the same value, encrypted with another key."""
    connection.execute(
        sa.text(f"update {table} set encrypted = :encrypted where {_ENCRYPTED[table]} = :key").bindparams(
            sa.bindparam("encrypted", type_=JSONB)
        ),
        {"encrypted": dict(encrypted), "key": key},
    )


def _require_changed(changed: sa.CursorResult[object], organization_id: str) -> None:
    if changed.rowcount == 0:
        raise ArgumentError(
            f"'{organization_id}' has no secret of that id: `cliniko-pipeline webhooks secrets list {organization_id}`"
            " lists them."
        )
