"""Where notices go: Apprise, which speaks e-mail, Slack, Teams, webhooks and many more."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from pydantic import SecretStr

from cliniko_pipeline.errors import SettingsError
from cliniko_pipeline.orchestration.alerts.messages import RECOVERED, TEST
from cliniko_pipeline.orchestration.plans.alerts import CHECK
from cliniko_pipeline.postgres.operator_tables.alerts import Notice

_TYPES = {RECOVERED: "success", TEST: "info", CHECK: "warning"}


@dataclass(frozen=True)
class Channel:
    """One of CLINIKO_ALERT_URLS. `label` is what may be shown of it, `digest` what it is recognized by."""

    position: int
    digest: str
    label: str
    url: SecretStr = field(repr=False)


def channels(urls: Iterable[SecretStr]) -> list[Channel]:
    """The channels of the setting, in its order."""
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
    """Raises SettingsError where Apprise cannot make anything of the URL."""
    if not _apprise(channel):
        raise SettingsError(
            f"CLINIKO_ALERT_URLS: {channel.label} is not what Apprise understands; its documentation tells how the URL"
            " of each service is written."
        )


def send(channel: Channel, notice: Notice) -> bool:
    """Whether the channel took the notice, which is plain text: what in it looks like a service's markup is escaped.

    Takes a few seconds at most where the service answers; raises nothing.
    """
    target = _apprise(channel)
    if not target:
        return False
    try:
        kind = _TYPES.get(notice.kind, "failure")
        return bool(target.notify(title=notice.title, body=notice.body, notify_type=kind, body_format="text"))
    except Exception:  # noqa: BLE001 (whatever one of a hundred services' modules may raise)
        return False


def _apprise(channel: Channel) -> Any:
    """Apprise's own object; None where it understands nothing of the URL."""
    # Half a second that only who sends has to spend.
    import apprise  # noqa: PLC0415

    # It tells of failures with the URL, and that holds secrets; what failed is told by whoever sends.
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    target: Any = apprise.Apprise(asset=apprise.AppriseAsset(app_id="cliniko_pipeline", secure_logging=True))
    if not target.add(channel.url.get_secret_value()):
        return None
    for service in target:
        # What is longer than a service takes comes in parts, not in vain.
        service.overflow_mode = apprise.OverflowMode.SPLIT
    return target
