"""`cliniko.api_tokens` and `cliniko.api_refusals`: who may use the HTTP API, and which requests were refused.

The operator's own tables: everything here runs in an operator's transaction (`Database.operator`).
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.postgres.engine import is_read_only, sql, statement

PREFIX = "clinikopipeline"
"""What tokens begin with, so that programs that look for secrets know one."""

KEPT = timedelta(days=90)
"""For so long it is known which requests were refused."""

_TOKEN = re.compile(rf"{PREFIX}_([0-9a-f]{{12}})_[A-Za-z0-9_-]{{43}}")
_LONGEST = 200
_USED = timedelta(minutes=1)


@dataclass(frozen=True)
class ApiToken:
    """A token as it is stored: what it is good for, never the token itself.

    Attributes:
        id: the part of it that may be shown.
        scopes: of read, sync and admin.
        organizations: whose things it opens; None: all organizations', those added later too.
        requests_per_minute: None: as the settings say.
        expires_at, revoked_at: None: never, not.
        is_expired: whether that time has come, by the database's clock.
    """

    id: str
    name: str
    scopes: frozenset[str]
    organizations: frozenset[str] | None
    requests_per_minute: int | None
    created_at: datetime
    expires_at: datetime | None
    is_expired: bool
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True)
class NewToken:
    """A token just made: `text` is shown once and stored nowhere."""

    id: str
    text: str = field(repr=False)


@dataclass(frozen=True)
class Refusal:
    """A request that was refused: why, whose token, from where, and what it asked for, without its values."""

    reason: str
    token_id: str
    address: str
    method: str
    route: str
    organization_id: str


@dataclass(frozen=True)
class Refusals:
    """Equal refusals of one minute; `last_at` is when the last of them was."""

    refusal: Refusal
    attempts: int
    last_at: datetime


def create(
    connection: Connection,
    name: str,
    *,
    scopes: Collection[str],
    organizations: Collection[str] | None,
    expires_at: datetime | None,
    requests_per_minute: int | None = None,
) -> NewToken:
    """Makes a token of 256 random bits, and stores its digest."""
    token_id = secrets.token_hex(6)
    text = f"{PREFIX}_{token_id}_{secrets.token_urlsafe(32)}"
    connection.execute(
        sa.text(sql("api_tokens/save_api_token")),
        {
            "id": token_id,
            "name": name,
            "digest": _digest(text),
            "scopes": sorted(scopes),
            "organizations": None if organizations is None else sorted(organizations),
            "requests_per_minute": requests_per_minute,
            "expires_at": expires_at,
        },
    )
    return NewToken(token_id, text)


def find(connection: Connection, text: str) -> ApiToken | None:
    """The stored token that this is, expired or revoked ones too; None: there is none. Notes, by the minute, that it
    was used, where the database takes writes.
    """
    match = _TOKEN.fullmatch(text)
    if match is None or len(text) > _LONGEST:
        return None
    row = connection.execute(statement(sql("api_tokens/find_api_token")), {"id": match[1]}).mappings().one_or_none()
    # A digest of 256 random bits needs no salt and no slowness; what compares it tells nothing by its time.
    if row is None or not hmac.compare_digest(row["digest"], _digest(text)):
        return None
    token = _token(row)
    is_used_again = token.last_used_at is None or row["now"] - token.last_used_at > _USED
    if token.revoked_at is None and is_used_again and not is_read_only(connection):
        connection.execute(
            statement("update cliniko.api_tokens set last_used_at = now() where id = :id"), {"id": token.id}
        )
    return token


def tokens(connection: Connection) -> list[ApiToken]:
    """All of them, the oldest first."""
    rows = connection.execute(
        sa.text("select *, now() as now from cliniko.api_tokens order by created_at, id")
    ).mappings()
    return list(map(_token, rows))


def revoke(connection: Connection, token_id: str) -> None:
    """Closes the token at once and for good. Raises ArgumentError where there is none of that id."""
    revoked = connection.execute(
        sa.text("update cliniko.api_tokens set revoked_at = coalesce(revoked_at, now()) where id = :id"),
        {"id": token_id},
    )
    if revoked.rowcount == 0:
        raise ArgumentError("There is no token of that id: `cliniko-pipeline tokens list` shows which there are.")


def note_refusal(connection: Connection, refusal: Refusal) -> None:
    """Counts the refusal, and forgets those of long ago."""
    connection.execute(
        statement(sql("api_tokens/note_refused_request")),
        {
            "reason": refusal.reason,
            "token_id": refusal.token_id,
            "address": refusal.address,
            "method": refusal.method,
            "route": refusal.route,
            "organization_id": refusal.organization_id,
            "kept": KEPT,
        },
    )


def refusals(connection: Connection, limit: int) -> list[Refusals]:
    """The last of them, the latest first."""
    rows = connection.execute(
        sa.text("select * from cliniko.api_refusals order by last_at desc, reason, address limit :limit"),
        {"limit": limit},
    )
    return [
        Refusals(
            Refusal(row.reason, row.token_id, row.address, row.method, row.route, row.organization_id),
            row.attempts,
            row.last_at,
        )
        for row in rows
    ]


def _token(row: sa.RowMapping) -> ApiToken:
    organizations = row["organizations"]
    return ApiToken(
        id=row["id"],
        name=row["name"],
        scopes=frozenset(row["scopes"]),
        organizations=None if organizations is None else frozenset(organizations),
        requests_per_minute=row["requests_per_minute"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        is_expired=row["expires_at"] is not None and row["expires_at"] <= row["now"],
        revoked_at=row["revoked_at"],
        last_used_at=row["last_used_at"],
    )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
