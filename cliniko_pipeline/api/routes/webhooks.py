"""Webhooks that say an organization's account has changed: signed, kept before they are answered, synced later.

What changed is not asked and not kept: the sync finds out by itself, and what a relay sends may be of a patient.
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
LARGEST_BODY = 256 * 1024  # bytes
READ_ON = 4 * LARGEST_BODY
"""So much of a body that is too large is read and thrown away: whoever sends it then gets the answer."""

SECONDS_TO_SEND = 10
"""For a whole body."""

NOT_SIGNED = "webhook not signed as it must be"
"""The reason that refusals are noted with."""

_LOG = logging.getLogger(__name__)

# Otherwise the server reads the rest, however much that is.
_HANGING_UP = {"Connection": "close"}

_MESSAGE_ID = re.compile(r"[!-~]{1,256}")
_SIGNATURE = re.compile(r"v1,[A-Za-z0-9+/]{43}=")
# A name has a capital letter, a number or an address something else.
_TYPE = re.compile(r"[a-z]+([._][a-z]+){0,5}")
_LONGEST_TYPE = 64

_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "description": "Any JSON object of at most 256 KiB. Of it only `type` is kept, where that is a short plain word.",
    "content": {
        "application/json": {
            "schema": {"type": "object"},
            "examples": {"changed": {"value": {"type": "appointment.updated"}}, "nothing said": {"value": {}}},
        }
    },
}

router = APIRouter(tags=["webhooks"])


class AcceptedWebhook(BaseModel):
    """What was announced is kept, and will be synced."""

    accepted: bool = Field(default=True, examples=[True])
    duplicate: bool = Field(examples=[False], description="Whether a message of this `webhook-id` had come before.")


class _BodyTooLargeError(Exception):
    """The body is beyond the limit."""


@router.post(
    PATH + "{organization_id}",
    status_code=HTTPStatus.ACCEPTED,
    summary="Say that something has changed in an organization's Cliniko account",
    responses={
        **documented(400, 401, 408, 413, 422, 503),
        202: {"description": "It is kept: the organization is synced within seconds, and no later than it can be."},
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
            description="The message's own id, the same when it is sent again: 1 to 256 visible ASCII characters.",
            examples=["msg_2KWPBgLlAfxdpx2AI54pPJ85f4W"],
        ),
    ] = "",
    timestamp: Annotated[
        str,
        Header(
            alias="webhook-timestamp",
            description="When it was signed: seconds since 1970, no more than five minutes ago.",
            examples=["1789000000"],
        ),
    ] = "",
    signature: Annotated[
        str,
        Header(
            alias="webhook-signature",
            description="`v1,` and the base64 of the HMAC-SHA256, by Standard Webhooks; several with spaces between.",
            examples=["v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="],
        ),
    ] = "",
) -> AcceptedWebhook:
    """Signed by [Standard Webhooks](https://www.standardwebhooks.com) with a secret of `cliniko-pipeline webhooks
    secrets create`; there is no token. Whatever gathers while a sync goes on is read by one sync after it.
    """
    if message_id and _MESSAGE_ID.fullmatch(message_id) is None:
        raise ProblemError(
            HTTPStatus.BAD_REQUEST, "The header webhook-id must be 1 to 256 visible ASCII characters: send another."
        )
    body = await _body(request)
    headers = {"webhook-id": message_id, "webhook-timestamp": timestamp, "webhook-signature": signature}
    is_new = await run_in_threadpool(_keep, runtime, gate, request, organization_id, headers, body)
    return AcceptedWebhook(duplicate=not is_new)


def _keep(
    runtime: Runtime, gate: Gate, request: Request, organization_id: str, headers: Mapping[str, str], body: bytes
) -> bool:
    """Whether the message had not come before; it is kept now. Raises ProblemError (400, 401)."""
    vault = runtime.vault
    with runtime.database.operator() as connection:
        found = [] if "\0" in organization_id else webhooks.webhook_secrets(connection, organization_id)
        # One that fits nothing: none and one take the same time. More take longer, which tells how many there are.
        stored = [each.encrypted for each in found if each.is_valid] or [vault.encrypt_text(_new_secret())]
        is_signed = any([_is_signed(_opened(runtime, each), headers, body) for each in stored])  # noqa: C419 (all)
        if is_signed:
            return webhooks.note_event(connection, organization_id, headers["webhook-id"], _type(body))
    gate.refused(request, NOT_SIGNED, HTTPStatus.UNAUTHORIZED)
    raise ProblemError(
        HTTPStatus.UNAUTHORIZED,
        "The webhook is not signed with a secret of this organization, or not within the last five minutes: sign it by"
        " Standard Webhooks with a secret of `cliniko-pipeline webhooks secrets create`, and look at the clock.",
        {"WWW-Authenticate": "Webhook-Signature"},
    )


async def _body(request: Request) -> bytes:
    try:
        async with asyncio.timeout(SECONDS_TO_SEND):
            return await _whole_body(request)
    except TimeoutError:
        raise ProblemError(
            HTTPStatus.REQUEST_TIMEOUT,
            f"The body did not come within {SECONDS_TO_SEND} seconds: send it again.",
            _HANGING_UP,
        ) from None
    except _BodyTooLargeError:
        raise ProblemError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The body is larger than {LARGEST_BODY // 1024} KiB: send less, nothing of it is needed.",
            _HANGING_UP,
        ) from None
    except ClientDisconnect:
        raise ProblemError(HTTPStatus.BAD_REQUEST, "The body ended too early: send it again.") from None


async def _whole_body(request: Request) -> bytes:
    body = bytearray()
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= LARGEST_BODY:
            body += chunk
        elif size > READ_ON:
            break
        else:
            body.clear()
    if size > LARGEST_BODY:
        raise _BodyTooLargeError
    return bytes(body)


def _is_signed(secret: str | None, headers: Mapping[str, str], body: bytes) -> bool:
    if secret is None:
        return False
    # What is of another kind or none at all must not keep a good one beside it from being looked at.
    signatures = [each for each in headers["webhook-signature"].split(" ") if _SIGNATURE.fullmatch(each)]
    try:
        Webhook(secret).verify(body, {**headers, "webhook-signature": " ".join(signatures)}, json_parse=False)
    except (WebhookVerificationError, ValueError, OverflowError):  # e.g. a body that is not UTF-8
        return False
    return True


def _opened(runtime: Runtime, encrypted: object) -> str | None:
    try:
        return runtime.vault.decrypt_text(encrypted)
    except CredentialsError as error:
        _LOG.error("A webhook secret cannot be used: %s", error)
        return None


def _type(body: bytes) -> str | None:
    """What the body calls itself. Raises ProblemError (400) where it is not a JSON object."""
    members = _json_or_none(body)
    if not isinstance(members, dict):
        raise ProblemError(HTTPStatus.BAD_REQUEST, "The body must be a JSON object, such as {}: send one.")
    named = cast("dict[str, Any]", members).get("type")
    if not isinstance(named, str) or len(named) > _LONGEST_TYPE or _TYPE.fullmatch(named) is None:
        return None
    return named


def _json_or_none(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _new_secret() -> str:
    return secrets.token_urlsafe(32)
