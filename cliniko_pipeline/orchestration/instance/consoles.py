"""What runs print where nobody asked for it: what is wrong, and nothing else. All of it stands in their events."""

from typing import Any

import dagster as dg


def _told(config: dict[str, Any]) -> dict[str, Any]:
    return {"log_level": config["log_level"]}


quiet_console = dg.colored_console_logger.configured(
    _told,
    config_schema={"log_level": dg.Field(dg.String, is_required=False, default_value="WARNING")},
    description="Dagster's own, which prints every event unless told otherwise.",
)
