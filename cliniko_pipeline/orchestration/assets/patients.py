"""The asset `cliniko/patients`, which includes archived and merged patients."""

import dagster as dg

from cliniko_pipeline.cliniko.records import PATIENTS as PATIENTS_RESOURCE
from cliniko_pipeline.orchestration.assets.extraction import AccountReading, ExtractionConfig, source
from cliniko_pipeline.orchestration.assets.values import RecordStream
from cliniko_pipeline.orchestration.partitions import ORGANIZATIONS
from cliniko_pipeline.orchestration.resources import ClinikoResource
from cliniko_pipeline.orchestration.ui_metadata.tables import column_schema
from cliniko_pipeline.postgres.tables import PATIENTS
from cliniko_pipeline.runtime import Runtime

SOURCE = source(PATIENTS_RESOURCE, PATIENTS)


@dg.asset(
    key=["cliniko", "patients"],
    partitions_def=ORGANIZATIONS,
    io_manager_key="postgres",
    group_name="cliniko",
    kinds={"python", "postgres"},
    owners=["team:data-engineering"],
    description=(
        "Every patient of the organization's Cliniko account, archived, deleted and merged ones included. Only"
        " identifying data is stored, nothing clinical or financial."
    ),
    metadata={
        "dagster/table_name": "cliniko.patients",
        "dagster/column_schema": column_schema(
            ("organization_id", "text", "the organization's id, which row-level security checks"),
            ("id", "text", "Cliniko's id, digits"),
            ("first_name", "text", ""),
            ("last_name", "text", ""),
            ("email", "text", ""),
            ("archived_at", "timestamptz", ""),
            ("deleted_at", "timestamptz", ""),
            ("merged_at", "timestamptz", "when the patient was merged into another one"),
            ("merged_into_id", "text", "id of the patient into which this one was merged"),
            ("created_at", "timestamptz", "in Cliniko"),
            ("updated_at", "timestamptz", "in Cliniko"),
            ("synced_at", "timestamptz", "last write of this row"),
            ("vanished_at", "timestamptz", "when a full sync first found it deleted in Cliniko"),
        ),
    },
)
def patients(
    context: dg.AssetExecutionContext,
    config: ExtractionConfig,
    runtime: dg.ResourceParam[Runtime],
    cliniko: dg.ResourceParam[ClinikoResource],
) -> RecordStream:
    """Return a stream of all or changed patients."""
    reading = AccountReading(runtime, cliniko, context.partition_key, config.full, config.accept_deletions, context.log)
    return reading.stream([SOURCE], lambda: reading.read(SOURCE))
