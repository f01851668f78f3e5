"""The console logger of runs, which shows only warnings and errors by default."""

from typing import Any

import dagster as dg


def _log_level(config: dict[str, Any]) -> dict[str, Any]:
    return {"log_level": config["log_level"]}


quiet_console = dg.colored_console_logger.configured(
    _log_level,
    config_schema={"log_level": dg.Field(dg.String, is_required=False, default_value="WARNING")},
    description="Dagster's console logger, at WARNING by default.",
)
