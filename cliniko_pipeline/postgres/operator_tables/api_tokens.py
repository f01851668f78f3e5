"""`cliniko.api_tokens` and `cliniko.api_refusals`: tokens and refused requests of the HTTP API."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.postgres.engine import is_read_only, sql, statement

PREFIX = "clinikopipeline"
"""The prefix by which secret scanners recognize tokens."""

_TOKEN = re.compile(rf"{PREFIX}_([0-9a-f]{{12}})_[A-Za-z0-9_-]{{43}}")
_MAX_LENGTH = 200
_USE_INTERVAL = timedelta(minutes=1)


@dataclass(frozen=True)
class ApiToken:
    """A stored token, without its secret.

    Attributes:
        id: the part of the token that may be shown.
        scopes: some of read, sync and admin.
        organizations: the ids of the organizations that the token may access; None for all, including future ones.
        requests_per_minute: the token's rate limit; None for the limit in the settings.
        expires_at: when the token expires; None for never.
        is_expired: whether `expires_at` has passed, by the database's clock.
        revoked_at: when the token was revoked, if it was.
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
    """A new token. `text` is shown once and never stored."""

    id: str
    text: str = field(repr=False)


@dataclass(frozen=True)
class Refusal:
    """A refused request. `route` is the template of the path, without values."""

    reason: str
    token_id: str
    address: str
    method: str
    route: str
    organization_id: str


@dataclass(frozen=True)
class Refusals:
    """The number of equal refusals in one minute. `last_at` is the time of the last refusal."""

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
    """Create a token of 256 random bits, and store its digest."""
    token_id = secrets.token_hex(6)
    text = f"{PREFIX}_{token_id}_{secrets.token_urlsafe(32)}"
    connection.execute(
        sa.text(
            "insert into cliniko.api_tokens"
            " (id, name, digest, scopes, organizations, requests_per_minute, expires_at)"
            " values (:id, :name, :digest, :scopes, :organizations, :requests_per_minute, :expires_at)"
        ),
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
    """Return the token with this text, or None. The token may be expired or revoked.

    The time of the last use is updated once a minute, unless the database is read-only.
    """
    match = _TOKEN.fullmatch(text)
    if match is None or len(text) > _MAX_LENGTH:
        return None
    row = connection.execute(statement(sql("api_tokens/find_api_token")), {"id": match[1]}).mappings().one_or_none()
    # A digest of 256 random bits needs no salt and no slow hash. The comparison takes constant time.
    if row is None or not hmac.compare_digest(row["digest"], _digest(text)):
        return None
    token = _token(row)
    is_use_due = token.last_used_at is None or row["now"] - token.last_used_at > _USE_INTERVAL
    if token.revoked_at is None and is_use_due and not is_read_only(connection):
        connection.execute(
            statement("update cliniko.api_tokens set last_used_at = now() where id = :id"), {"id": token.id}
        )
    return token


def tokens(connection: Connection) -> list[ApiToken]:
    """Return all tokens, the oldest first."""
    rows = connection.execute(
        sa.text("select *, now() as now from cliniko.api_tokens order by created_at, id")
    ).mappings()
    return list(map(_token, rows))


def revoke(connection: Connection, token_id: str) -> None:
    """Revoke the token permanently; raise ArgumentError if there is no token with this id."""
    revoked = connection.execute(
        sa.text("update cliniko.api_tokens set revoked_at = coalesce(revoked_at, now()) where id = :id"),
        {"id": token_id},
    )
    if revoked.rowcount == 0:
        raise ArgumentError("There is no token of that id: `cliniko-pipeline tokens list` lists them.")


def note_refusal(connection: Connection, refusal: Refusal) -> None:
    """Count the refusal."""
    connection.execute(statement(sql("api_tokens/note_refused_request")), asdict(refusal))


def refusals(connection: Connection, limit: int) -> list[Refusals]:
    """Return the last refusals, the latest first."""
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
