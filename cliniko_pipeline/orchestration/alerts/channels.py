"""Alert channels such as e-mail, Slack, Teams or webhooks, which Apprise provides."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from pydantic import SecretStr

from cliniko_pipeline.errors import SettingsError
from cliniko_pipeline.orchestration.alerts.messages import RECOVERED, TEST
from cliniko_pipeline.orchestration.plans.alerts import CHECK
from cliniko_pipeline.postgres.operator_tables.alerts import Message

_TYPES = {RECOVERED: "success", TEST: "info", CHECK: "warning"}


@dataclass(frozen=True)
class Channel:
    """One of CLINIKO_ALERT_URLS. `digest` is its name in the database. `label` has no secret."""

    position: int
    digest: str
    label: str
    url: SecretStr = field(repr=False)


def channels(urls: Iterable[SecretStr]) -> list[Channel]:
    """Return the channels in the order of the setting."""
    return [
        Channel(
            position,
            digest=sha256(url.get_secret_value().encode()).hexdigest(),
            label=f"channel {position} ({url.get_secret_value().partition('://')[0]})",
            url=url,
        )
        for position, url in enumerate(urls, start=1)
    ]


def require_known(channel: Channel) -> None:
    """Raise SettingsError if Apprise does not understand the URL."""
    if not _apprise(channel):
        raise SettingsError(
            f"CLINIKO_ALERT_URLS: Apprise does not understand the URL of {channel.label}. Its documentation shows the"
            " URLs of each service."
        )


def send(channel: Channel, message: Message) -> bool:
    """Send the message as plain text; return whether the channel accepted it. Raise nothing.

    Sending takes a few seconds at most if the service responds.
    """
    target = _apprise(channel)
    if not target:
        return False
    try:
        kind = _TYPES.get(message.kind, "failure")
        return bool(target.notify(title=message.title, body=message.body, notify_type=kind, body_format="text"))
    except Exception:  # noqa: BLE001 (the modules of the services can raise anything)
        return False


def _apprise(channel: Channel) -> Any:
    """Return Apprise's object, or None if Apprise does not understand the URL."""
    # Imported here, because the import takes half a second and most commands send no alert.
    import apprise  # noqa: PLC0415

    # Apprise logs failures with the URL, which contains secrets. The caller reports failures instead.
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    target: Any = apprise.Apprise(asset=apprise.AppriseAsset(app_id="cliniko_pipeline", secure_logging=True))
    if not target.add(channel.url.get_secret_value()):
        return None
    for service in target:
        # Text that exceeds a service's limit is sent in parts.
        service.overflow_mode = apprise.OverflowMode.SPLIT
    return target
