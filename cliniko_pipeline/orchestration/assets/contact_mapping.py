"""The asset `contact_mapping`, which finds the contact of each person."""

import dagster as dg
from pydantic import Field
from sqlalchemy.engine import Connection

from cliniko_pipeline.orchestration.assets.appointments import SOURCES as APPOINTMENT_SOURCES
from cliniko_pipeline.orchestration.assets.appointments import appointments
from cliniko_pipeline.orchestration.assets.patients import patients
from cliniko_pipeline.orchestration.assets.values import TableQuery
from cliniko_pipeline.orchestration.partitions import ORGANIZATIONS
from cliniko_pipeline.orchestration.ui_metadata.column_lineage import lineage
from cliniko_pipeline.orchestration.ui_metadata.tables import column_schema
from cliniko_pipeline.postgres.reads import lost_matches
from cliniko_pipeline.postgres.writing import computed_tables
from cliniko_pipeline.runtime import Runtime


class ContactMappingConfig(dg.Config):
    """The run configuration of `contact_mapping`."""

    accept_unmatched: bool = Field(
        default=False, description="Replace the mapping even if suspiciously many patients lose their contact."
    )


@dg.asset(
    # The query reads no appointments, but it must not run if the crawl of appointments has failed.
    deps=[patients, appointments],
    partitions_def=ORGANIZATIONS,
    io_manager_key="postgres",
    group_name="cliniko",
    kinds={"sql", "postgres"},
    owners=["team:data-engineering"],
    description=(
        "The contact of each person, found by the contact's cliniko_patient_id, e-mail or name if the match is certain."
        " Ambiguous and unmatched patients are kept and counted."
    ),
    metadata={
        "dagster/table_name": "cliniko.contact_mapping",
        "dagster/column_schema": column_schema(
            ("organization_id", "text", "the organization's id, which row-level security checks"),
            ("patient_id", "text", "the person, which is the patient at the end of a chain of merges"),
            ("contact_id", "uuid", "public.contacts.id; null unless matched"),
            ("status", "text", "matched, ambiguous or unmatched"),
            ("method", "text", "the criterion that decided the status: cliniko_patient_id, email or name"),
            ("candidate_count", "integer", "number of possible contacts of an ambiguous patient"),
            ("created_at", "timestamptz", ""),
            ("updated_at", "timestamptz", "last change of any column above"),
        ),
        **lineage(dg.AssetKey("contact_mapping")),
    },
)
def contact_mapping(
    context: dg.AssetExecutionContext, config: ContactMappingConfig, runtime: dg.ResourceParam[Runtime]
) -> TableQuery:
    """Return the query that computes the mapping inside PostgreSQL."""
    limit, organization_id = runtime.settings.lost_matches_share_limit, context.partition_key

    def inspect(connection: Connection) -> None:
        lost_matches.of_computed_mapping(connection).require_believable(limit, organization_id)

    return TableQuery(
        lambda: computed_tables.contact_mapping(None if config.accept_unmatched else inspect),
        requires=("patients", *(source.resource.name for source in APPOINTMENT_SOURCES)),
    )
