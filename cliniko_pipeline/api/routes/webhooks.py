"""Route of webhook events, which announce that an organization's Cliniko account has changed.

An event is stored before the response is sent, and a sync follows. Bodies are not stored: they may contain a patient's
data, and the sync reads all changes from Cliniko anyway.
"""

import asyncio
import json
import logging
import re
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, cast

from fastapi import APIRouter, Header, Path, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.requests import ClientDisconnect

from cliniko_pipeline.api.gate import Gate, GateDependency, RuntimeDependency
from cliniko_pipeline.api.problems import ProblemError, documented
from cliniko_pipeline.errors import CredentialsError
from cliniko_pipeline.postgres.operator_tables import webhooks
from cliniko_pipeline.runtime import Runtime

PATH = "/v1/webhooks/"
MAX_BODY_BYTES = 256 * 1024
MAX_DISCARDED_BYTES = 4 * MAX_BODY_BYTES
"""Size up to which a too large body is read, because many clients read no response while they still send."""

BODY_SECONDS = 10
"""Time limit for the complete body."""

NOT_SIGNED = "webhook without a valid signature"
"""The reason stored with a refusal."""

_LOG = logging.getLogger(__name__)

# Without this header, the server would read the rest of the body.
_CLOSE = {"Connection": "close"}

_MESSAGE_ID = re.compile(r"[!-~]{1,256}")
_SIGNATURE = re.compile(r"v1,[A-Za-z0-9+/]{43}=")
# The pattern excludes names (with capital letters), numbers and addresses.
_TYPE = re.compile(r"[a-z]+([._][a-z]+){0,5}")
_MAX_TYPE_LENGTH = 64

_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "description": "Any JSON object of at most 256 KiB. Only `type` is stored, and only if it is a short plain word.",
    "content": {
        "application/json": {
            "schema": {"type": "object"},
            "examples": {"changed": {"value": {"type": "appointment.updated"}}, "empty": {"value": {}}},
        }
    },
}

router = APIRouter(tags=["webhooks"])


class AcceptedWebhook(BaseModel):
    """The event is stored, and a sync will follow."""

    accepted: bool = Field(default=True, examples=[True])
    duplicate: bool = Field(examples=[False], description="Whether this `webhook-id` was received before.")


class _BodyTooLargeError(Exception):
    """The body is larger than MAX_BODY_BYTES."""


@router.post(
    PATH + "{organization_id}",
    status_code=HTTPStatus.ACCEPTED,
    summary="Announce a change in an organization's Cliniko account",
    responses={
        **documented(400, 401, 408, 413, 422, 503),
        202: {"description": "The event is stored. A sync starts within seconds, or after the running sync."},
    },
    openapi_extra={"requestBody": _REQUEST_BODY},
)
async def receive(
    request: Request,
    gate: GateDependency,
    runtime: RuntimeDependency,
    organization_id: Annotated[str, Path(examples=["clinic-1"])],
    message_id: Annotated[
        str,
        Header(
            alias="webhook-id",
            description="Id of the message, of 1 to 256 visible ASCII characters. A retry has the same id.",
            examples=["msg_2KWPBgLlAfxdpx2AI54pPJ85f4W"],
        ),
    ] = "",
    timestamp: Annotated[
        str,
        Header(
            alias="webhook-timestamp",
            description="Time of the signature in seconds since 1970, at most five minutes ago.",
            examples=["1789000000"],
        ),
    ] = "",
    signature: Annotated[
        str,
        Header(
            alias="webhook-signature",
            description="`v1,` and the HMAC-SHA256 in base64, as Standard Webhooks defines. Separate several signatures"
            " by spaces.",
            examples=["v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="],
        ),
    ] = "",
) -> AcceptedWebhook:
    """Store the event. The request needs no token, but it needs a signature as
    [Standard Webhooks](https://www.standardwebhooks.com) defines, with a secret of
    `cliniko-pipeline webhooks secrets create`. All events that arrive during a sync lead to one later sync.
    """
    if message_id and _MESSAGE_ID.fullmatch(message_id) is None:
        raise ProblemError(
            HTTPStatus.BAD_REQUEST, "The header webhook-id must be 1 to 256 visible ASCII characters: send another."
        )
    body = await _read_body(request)
    headers = {"webhook-id": message_id, "webhook-timestamp": timestamp, "webhook-signature": signature}
    is_new = await run_in_threadpool(_store, runtime, gate, request, organization_id, headers, body)
    return AcceptedWebhook(duplicate=not is_new)


def _store(
    runtime: Runtime, gate: Gate, request: Request, organization_id: str, headers: Mapping[str, str], body: bytes
) -> bool:
    """Store the event and return whether it is new. Raise ProblemError (400, 401)."""
    with runtime.database.operator() as connection:
        found = [] if "\0" in organization_id else webhooks.webhook_secrets(connection, organization_id)
        encrypted = [secret.encrypted for secret in found if secret.is_valid]
        # Without a secret, a random one is tried, so that the response time does not reveal whether there is a secret.
        encrypted = encrypted or [runtime.vault.encrypt_text(secrets.token_urlsafe(32))]
        # All secrets are tried even after a match, so that the response time does not reveal which one matches.
        is_signed = [_is_signed(_decrypt(runtime, secret), headers, body) for secret in encrypted]
        if any(is_signed):
            return webhooks.note_event(connection, organization_id, headers["webhook-id"], _type(body))
    gate.refuse(request, NOT_SIGNED, HTTPStatus.UNAUTHORIZED)
    raise ProblemError(
        HTTPStatus.UNAUTHORIZED,
        "The event has no signature of the last five minutes by a secret of this organization. Sign it as Standard"
        " Webhooks defines, with a secret of `cliniko-pipeline webhooks secrets create`, and check the clock.",
        {"WWW-Authenticate": "Webhook-Signature"},
    )


async def _read_body(request: Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read_limited(request)
    except TimeoutError:
        raise ProblemError(
            HTTPStatus.REQUEST_TIMEOUT,
            f"The body did not arrive within {BODY_SECONDS} seconds: send it again.",
            _CLOSE,
        ) from None
    except _BodyTooLargeError:
        raise ProblemError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The body is larger than {MAX_BODY_BYTES // 1024} KiB: send less. The content is not needed.",
            _CLOSE,
        ) from None
    except ClientDisconnect:
        raise ProblemError(HTTPStatus.BAD_REQUEST, "The body ended too early: send it again.") from None


async def _read_limited(request: Request) -> bytes:
    body = bytearray()
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MAX_BODY_BYTES:
            body += chunk
        elif size > MAX_DISCARDED_BYTES:
            break
        else:
            body.clear()
    if size > MAX_BODY_BYTES:
        raise _BodyTooLargeError
    return bytes(body)


def _is_signed(secret: str | None, headers: Mapping[str, str], body: bytes) -> bool:
    if secret is None:
        return False
    # The library fails on a signature of an unknown version, so only `v1` signatures are passed on.
    signatures = [part for part in headers["webhook-signature"].split(" ") if _SIGNATURE.fullmatch(part)]
    try:
        Webhook(secret).verify(body, {**headers, "webhook-signature": " ".join(signatures)}, json_parse=False)
    except (WebhookVerificationError, ValueError, OverflowError):  # e.g. a body that is not UTF-8
        return False
    return True


def _decrypt(runtime: Runtime, encrypted: object) -> str | None:
    try:
        return runtime.vault.decrypt_text(encrypted)
    except CredentialsError as error:
        _LOG.error("A webhook secret cannot be decrypted: %s", error)
        return None


def _type(body: bytes) -> str | None:
    """Return the event's type, or None if it has no type that may be stored.

    Raise ProblemError (400) if the body is not a JSON object.
    """
    try:
        members: object = json.loads(body)
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise ProblemError(HTTPStatus.BAD_REQUEST, "The body must be a JSON object, such as {}: send one.")
    name = cast("dict[str, Any]", members).get("type")
    if not isinstance(name, str) or len(name) > _MAX_TYPE_LENGTH or _TYPE.fullmatch(name) is None:
        return None
    return name
