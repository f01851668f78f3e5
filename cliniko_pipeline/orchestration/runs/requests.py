"""The run requests of schedules and sensors."""

import dagster as dg

from cliniko_pipeline.sync_options import SyncOptions, run_config, run_tags


def sync_request(organization_id: str, run_key: str, *, is_full: bool = False, is_first: bool = False) -> dg.RunRequest:
    """Return the run request of a sync. Dagster launches only one run per `run_key`."""
    options = SyncOptions(full=is_full)
    return dg.RunRequest(
        run_key=run_key,
        partition_key=organization_id,
        run_config=run_config(options),
        # One of these tags names the partition. Without that tag, Dagster would send a query for each run request.
        tags=run_tags(organization_id, options, is_first=is_first),
    )
