"""The two jobs: a sync, and a comparison of record counts."""

import dagster as dg

from cliniko_pipeline.orchestration.assets import ASSETS
from cliniko_pipeline.orchestration.checks import COUNT_CHECKS, SYNC_CHECKS

cliniko_sync = dg.define_asset_job(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    "cliniko_sync",
    # Count checks send requests of their own.
    selection=dg.AssetSelection.assets(*ASSETS).without_checks() | dg.AssetSelection.checks(*SYNC_CHECKS),
    # A process per step costs more than the step.
    executor_def=dg.in_process_executor,
    description="Sync one organization: crawl its Cliniko account, map its contacts, compute active_patients.",
)

cliniko_counts = dg.define_asset_job(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    "cliniko_counts",
    selection=dg.AssetSelection.checks(*COUNT_CHECKS),
    executor_def=dg.in_process_executor,
    description=(
        "Compare one organization's numbers of records with Cliniko's, in four requests. The next sync reads a resource"
        " in full if its numbers differ."
    ),
)
