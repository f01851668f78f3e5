"""`cliniko/appointments`: every individual and group appointment, the attendees of groups, and the names to show."""

from functools import partial

import dagster as dg
import sqlalchemy as sa

from cliniko_pipeline.cliniko.records import (
    APPOINTMENT_TYPES as APPOINTMENT_TYPES_RESOURCE,
)
from cliniko_pipeline.cliniko.records import (
    ATTENDEES as ATTENDEES_RESOURCE,
)
from cliniko_pipeline.cliniko.records import (
    GROUP_APPOINTMENTS,
    INDIVIDUAL_APPOINTMENTS,
    GroupAppointment,
    IndividualAppointment,
)
from cliniko_pipeline.cliniko.records import (
    PRACTITIONERS as PRACTITIONERS_RESOURCE,
)
from cliniko_pipeline.orchestration.assets.extraction import Reading, Source, source
from cliniko_pipeline.orchestration.partitions import ORGANIZATIONS
from cliniko_pipeline.orchestration.resources import ClinikoResource
from cliniko_pipeline.orchestration.table_metadata import column_schema
from cliniko_pipeline.orchestration.values import RecordStream
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.tables import APPOINTMENT_TYPES, APPOINTMENTS, ATTENDEES, PRACTITIONERS
from cliniko_pipeline.runtime import Runtime


def individual_row(appointment: IndividualAppointment) -> tuple[object, ...]:
    """The row of `cliniko.appointments` for an appointment of one patient."""
    return (
        "individual",
        appointment.id,
        appointment.patient_id,
        appointment.appointment_type_id,
        appointment.practitioner_id,
        appointment.starts_at,
        appointment.ends_at,
        appointment.cancelled_at,
        appointment.archived_at,
        appointment.deleted_at,
        appointment.did_not_arrive,
        appointment.created_at,
        appointment.updated_at,
    )


def group_row(appointment: GroupAppointment) -> tuple[object, ...]:
    """The row for a group appointment, which has no patient and is never itself cancelled."""
    return (
        "group",
        appointment.id,
        None,
        appointment.appointment_type_id,
        appointment.practitioner_id,
        appointment.starts_at,
        appointment.ends_at,
        None,
        appointment.archived_at,
        appointment.deleted_at,
        False,
        appointment.created_at,
        appointment.updated_at,
    )


SOURCES = (
    source(APPOINTMENT_TYPES_RESOURCE, APPOINTMENT_TYPES),
    source(PRACTITIONERS_RESOURCE, PRACTITIONERS),
    Source(INDIVIDUAL_APPOINTMENTS, APPOINTMENTS, individual_row),
    Source(GROUP_APPOINTMENTS, APPOINTMENTS, group_row),
    source(ATTENDEES_RESOURCE, ATTENDEES),
)


def no_group_has_attendees(database: Database, organization_id: str, resource: str) -> bool:
    """Attendees count in group appointments only: an account without any saves one request per hundred appointments,
    since Cliniko lists the attendees of individual appointments too.
    """
    if resource != ATTENDEES_RESOURCE.name:
        return False
    with database.organization(organization_id) as connection:
        return not connection.execute(sa.text(sql("has_group_appointments"))).scalar_one()


@dg.asset(
    key=["cliniko", "appointments"],
    partitions_def=ORGANIZATIONS,
    io_manager_key="postgres",
    group_name="cliniko",
    kinds={"python", "postgres"},
    owners=["team:data-engineering"],
    description=(
        "Every individual and group appointment of the organization's Cliniko account, cancelled, archived and deleted"
        " ones included. Beside it stand cliniko.attendees (who takes part in a group), cliniko.appointment_types and"
        " cliniko.practitioners (names)."
    ),
    metadata={
        "dagster/table_name": "cliniko.appointments",
        "dagster/column_schema": column_schema(
            ("organization_id", "text", "whose appointment it is; row-level security keeps to it"),
            ("kind", "text", "individual or group"),
            ("id", "text", "Cliniko's id, digits"),
            ("patient_id", "text", "of an individual appointment; a group has attendees"),
            ("appointment_type_id", "text", ""),
            ("practitioner_id", "text", ""),
            ("starts_at", "timestamptz", ""),
            ("ends_at", "timestamptz", ""),
            ("cancelled_at", "timestamptz", "of an individual appointment; in a group each attendee cancels"),
            ("archived_at", "timestamptz", ""),
            ("deleted_at", "timestamptz", ""),
            ("did_not_arrive", "boolean", "a no-show; in a group each attendee has its own"),
            ("created_at", "timestamptz", "in Cliniko"),
            ("updated_at", "timestamptz", "in Cliniko"),
            ("synced_at", "timestamptz", "when this row was last written"),
        ),
    },
)
def appointments(
    context: dg.AssetExecutionContext, runtime: dg.ResourceParam[Runtime], cliniko: dg.ResourceParam[ClinikoResource]
) -> RecordStream:
    """A stream of all appointments, each resource in `created_at` order, groups before their attendees."""
    organization_id = context.partition_key
    skip = partial(no_group_has_attendees, runtime.database, organization_id)
    return Reading(cliniko, organization_id, context.log, SOURCES, skip).stream()
