"""Which runs rely on what was computed and checked before, and which do everything anew."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from cliniko_pipeline.sync_options import SYNC_ASSETS

_READ = ("cliniko__patients", "cliniko__appointments")


def is_whole_sync(job: dg.JobDefinition) -> bool:
    """Whether the run reads as well as computes."""
    return {key.to_user_string() for key in job.asset_layer.selected_asset_keys} >= SYNC_ASSETS


def is_forced(job: dg.JobDefinition, run_config: Mapping[str, Any]) -> bool:
    """Whether nothing may be taken over from earlier runs: a full sync is one, and so is what an operator launches by
    itself, for whom it may be the way to mend something.
    """
    return is_full(run_config) or not is_whole_sync(job)


def is_full(run_config: Mapping[str, Any]) -> bool:
    """Whether the run was launched to read everything."""
    ops = run_config.get("ops", {})
    return any(ops.get(name, {}).get("config", {}).get("full", False) for name in _READ)
