"""Signed webhook events, such as relays send."""

import base64
import json
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
from standardwebhooks import Webhook

from cliniko_pipeline.postgres.operator_tables import webhooks
from cliniko_pipeline.runtime import Runtime

CLIENT = httpx.Client(timeout=60, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
"""The client is shared, because creating a client takes longer than sending a request."""


def new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def add_secret(runtime: Runtime, organization_id: str) -> tuple[str, str]:
    """Store a new secret of the organization. Return the secret and its id."""
    secret = new_secret()
    with runtime.database.operator() as connection:
        return secret, webhooks.add_secret(connection, organization_id, runtime.vault.encrypt_text(secret))


def signed(
    secret: str, body: bytes, message_id: str | None = None, *, later: timedelta = timedelta(0)
) -> dict[str, str]:
    """Return the headers of a message signed at a time `later` than now."""
    message_id = message_id or f"msg_{uuid4().hex}"
    at = datetime.now(UTC) + later
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, at, body.decode()),
    }


def send(
    url: str, organization_id: str, secret: str, content: Any = None, message_id: str | None = None, **options: Any
) -> httpx.Response:
    """Post a webhook event to the service at the URL. `options` are passed to `signed`."""
    body = json.dumps({"type": "appointment.updated"} if content is None else content).encode()
    headers = signed(secret, body, message_id, **options)
    return CLIENT.post(f"{url}/v1/webhooks/{organization_id}", content=body, headers=headers)
