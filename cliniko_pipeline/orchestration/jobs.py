"""The jobs: sync an organization, compare its record counts, and prune old data."""

import dagster as dg

from cliniko_pipeline.orchestration.assets import ASSETS
from cliniko_pipeline.orchestration.checks import COUNT_CHECKS, SYNC_CHECKS
from cliniko_pipeline.orchestration.retention.op import prune

cliniko_sync = dg.define_asset_job(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    "cliniko_sync",
    # Count checks send requests to Cliniko, which would slow down every sync.
    selection=dg.AssetSelection.assets(*ASSETS).without_checks() | dg.AssetSelection.checks(*SYNC_CHECKS),
    # A new process for each step would cost more than the step itself.
    executor_def=dg.in_process_executor,
    description="Sync one organization: crawl its Cliniko account, map its contacts, compute active_patients.",
)

cliniko_counts = dg.define_asset_job(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    "cliniko_counts",
    selection=dg.AssetSelection.checks(*COUNT_CHECKS),
    executor_def=dg.in_process_executor,
    description=(
        "Compare one organization's record counts with Cliniko's, using four requests. If the counts of a resource"
        " differ, the next sync reads it in full."
    ),
)


@dg.job(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    name="cliniko_prune",
    executor_def=dg.in_process_executor,
    description="Delete old runs, events and history, for all organizations. The settings say how long these are kept.",
)
def cliniko_prune() -> None:
    """Prune in a process of its own, because a tick of a schedule has only 60 seconds."""
    prune()
