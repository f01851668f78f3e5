"""The decision whether a run may reuse earlier results or must recompute everything."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from cliniko_pipeline.sync_options import SYNC_ASSETS

_READ = ("cliniko__patients", "cliniko__appointments")


def is_complete_sync(job: dg.JobDefinition) -> bool:
    """Return whether the run includes all assets of a sync."""
    return {key.to_user_string() for key in job.asset_layer.selected_asset_keys} >= SYNC_ASSETS


def is_forced(job: dg.JobDefinition, run_config: Mapping[str, Any]) -> bool:
    """Return whether the run must recompute everything.

    A full sync must recompute everything. So must a run of only some assets, because such a run may be a repair.
    """
    return is_full(run_config) or not is_complete_sync(job)


def is_full(run_config: Mapping[str, Any]) -> bool:
    """Return whether the run was launched as a full sync."""
    ops = run_config.get("ops", {})
    return any(ops.get(name, {}).get("config", {}).get("full", False) for name in _READ)
