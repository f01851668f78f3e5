"""The asset `active_patients`, whose table the application reads."""

import dagster as dg
from pydantic import Field
from sqlalchemy.engine import Connection

from cliniko_pipeline.instants import parse_instant
from cliniko_pipeline.orchestration.assets.appointments import SOURCES as APPOINTMENT_SOURCES
from cliniko_pipeline.orchestration.assets.appointments import appointments
from cliniko_pipeline.orchestration.assets.contact_mapping import contact_mapping
from cliniko_pipeline.orchestration.assets.patients import patients
from cliniko_pipeline.orchestration.assets.values import TableQuery
from cliniko_pipeline.orchestration.partitions import ORGANIZATIONS
from cliniko_pipeline.orchestration.ui_metadata.column_lineage import lineage
from cliniko_pipeline.orchestration.ui_metadata.tables import column_schema
from cliniko_pipeline.postgres.reads import lost_matches
from cliniko_pipeline.postgres.writing import computed_tables
from cliniko_pipeline.postgres.writing.derivations import Derivation
from cliniko_pipeline.runtime import Runtime


class ActivePatientsConfig(dg.Config):
    """The run configuration of `active_patients`."""

    as_of: str | None = Field(
        default=None,
        description=(
            "The time that separates past from upcoming appointments. Default: now. Use ISO 8601 with an offset or Z."
        ),
    )


@dg.asset(
    deps=[patients, appointments, contact_mapping],
    partitions_def=ORGANIZATIONS,
    io_manager_key="postgres",
    group_name="cliniko",
    kinds={"sql", "postgres"},
    owners=["team:data-engineering"],
    description=(
        "The organization's active patients with a contact, one row each, with recent, upcoming and total appointments."
        " A patient is active with at least one appointment in the last 60 days (a setting)."
    ),
    metadata={
        "dagster/table_name": "public.active_patients",
        "dagster/column_schema": column_schema(
            ("id", "bigint", "stays the same while the patient stays active"),
            ("contact_id", "uuid", "public.contacts.id"),
            ("recent_appointment_count", "integer", "appointments within the window before search_date_to"),
            ("upcoming_appointment_count", "integer", "appointments after search_date_to"),
            ("total_appointment_count", "integer", "appointments at any time"),
            ("last_appointment_date", "timestamp", "start of the latest past appointment, UTC"),
            ("recent_appointments", "jsonb", "details of the recent appointments, latest first"),
            ("upcoming_appointments", "jsonb", "details of the upcoming appointments, soonest first"),
            ("search_date_from", "timestamp", "start of the window, UTC"),
            ("search_date_to", "timestamp", "end of the window, which is the run's as_of, UTC"),
            ("organization_id", "text", "the organization's id, which row-level security checks"),
            ("created_at", "timestamp", "UTC"),
            ("updated_at", "timestamp", "UTC"),
        ),
        **lineage(dg.AssetKey("active_patients")),
    },
)
def active_patients(
    context: dg.AssetExecutionContext, config: ActivePatientsConfig, runtime: dg.ResourceParam[Runtime]
) -> TableQuery:
    """Return the query that computes the rows inside PostgreSQL."""
    limit, organization_id = runtime.settings.lost_matches_share_limit, context.partition_key

    def inspect(connection: Connection) -> None:
        # Contacts may have been deleted since the asset contact_mapping was computed.
        lost_matches.of_stored_mapping(connection).require_believable(limit, organization_id)

    def derivation() -> Derivation:
        as_of = runtime.now() if config.as_of is None else parse_instant(config.as_of)
        return computed_tables.active_patients(as_of, runtime.rules, inspect)

    requires = ("patients", *(source.resource.name for source in APPOINTMENT_SOURCES))
    return TableQuery(derivation, requires)
