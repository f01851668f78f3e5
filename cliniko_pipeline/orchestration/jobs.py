"""The jobs."""

import dagster as dg

from cliniko_pipeline.orchestration.assets.active_patients import active_patients
from cliniko_pipeline.orchestration.assets.appointments import appointments
from cliniko_pipeline.orchestration.assets.contact_mapping import contact_mapping
from cliniko_pipeline.orchestration.assets.patients import patients
from cliniko_pipeline.orchestration.checks import CLAIMS, COUNTS

ASSETS = (patients, appointments, contact_mapping, active_patients)

cliniko_sync = dg.define_asset_job(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    "cliniko_sync",
    # The counts cost requests of their own.
    selection=dg.AssetSelection.assets(*ASSETS).without_checks() | dg.AssetSelection.checks(*CLAIMS),
    # A process per step costs more than the work in it.
    executor_def=dg.in_process_executor,
    description="Everything for one organization: read its Cliniko account, map its contacts, renew active_patients.",
)

cliniko_counts = dg.define_asset_job(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    "cliniko_counts",
    selection=dg.AssetSelection.checks(*COUNTS),
    executor_def=dg.in_process_executor,
    description=(
        "Compares the numbers of records with Cliniko's, for one organization, in four requests. Where they differ, the"
        " next sync is a full one."
    ),
)
