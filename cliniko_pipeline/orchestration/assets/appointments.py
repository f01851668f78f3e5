"""The asset `cliniko/appointments`, with attendees, appointment types and practitioners."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

import dagster as dg

from cliniko_pipeline.cliniko.records import (
    APPOINTMENT_TYPES as APPOINTMENT_TYPES_RESOURCE,
)
from cliniko_pipeline.cliniko.records import (
    ATTENDEES as ATTENDEES_RESOURCE,
)
from cliniko_pipeline.cliniko.records import (
    GROUP_APPOINTMENTS,
    INACTIVE_PRACTITIONERS,
    INDIVIDUAL_APPOINTMENTS,
    GroupAppointment,
    IndividualAppointment,
    Practitioner,
    Resource,
)
from cliniko_pipeline.cliniko.records import (
    PRACTITIONERS as PRACTITIONERS_RESOURCE,
)
from cliniko_pipeline.orchestration.assets.extraction import AccountReading, ExtractionConfig, Source, source
from cliniko_pipeline.orchestration.assets.values import RecordStream
from cliniko_pipeline.orchestration.partitions import ORGANIZATIONS
from cliniko_pipeline.orchestration.resources import ClinikoResource
from cliniko_pipeline.orchestration.ui_metadata.tables import column_schema
from cliniko_pipeline.postgres.tables import APPOINTMENT_TYPES, APPOINTMENTS, ATTENDEES, PRACTITIONERS
from cliniko_pipeline.postgres.writing.appointments import has_groups, nameless_ids, stored_ids
from cliniko_pipeline.postgres.writing.record_batches import RecordBatch
from cliniko_pipeline.runtime import Runtime


def individual_row(appointment: IndividualAppointment) -> tuple[object, ...]:
    """Return the row of `cliniko.appointments` for an individual appointment."""
    return ("individual", *_of_individual(appointment))


def group_row(appointment: GroupAppointment) -> tuple[object, ...]:
    """Return the row for a group appointment, which has no patient and cannot be cancelled."""
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


_of_individual = attrgetter(*APPOINTMENTS.written[1:])

TYPE_NAMES = source(APPOINTMENT_TYPES_RESOURCE, APPOINTMENT_TYPES)
PRACTITIONER_NAMES = source(PRACTITIONERS_RESOURCE, PRACTITIONERS)
INDIVIDUAL = Source(INDIVIDUAL_APPOINTMENTS, APPOINTMENTS, individual_row)
GROUPS = Source(GROUP_APPOINTMENTS, APPOINTMENTS, group_row)
IN_GROUPS = source(ATTENDEES_RESOURCE, ATTENDEES)
SOURCES = (TYPE_NAMES, PRACTITIONER_NAMES, INDIVIDUAL, GROUPS, IN_GROUPS)

_EPOCH = datetime.fromtimestamp(0, UTC)


class _AppointmentReading:
    """The crawls that one run of the asset needs."""

    def __init__(self, reading: AccountReading) -> None:
        self._reading = reading
        self._names = (
            _Names(reading, TYPE_NAMES, "appointment_type_id"),
            _Names(reading, PRACTITIONER_NAMES, "practitioner_id", INACTIVE_PRACTITIONERS),
        )
        self._groups_horizon: datetime | None = None

    def batches(self) -> Iterator[RecordBatch]:
        for names in self._names:
            yield from names.of_full_crawl()
        yield from self._with_names(self._reading.read(INDIVIDUAL))
        for batch in self._with_names(self._reading.read(GROUPS)):
            if batch.resource == GROUPS.resource.name and batch.crawl is not None:
                self._groups_horizon = batch.crawl.next_cursor
            yield batch
        yield from self._attendees()

    def _with_names(self, batches: Iterator[RecordBatch]) -> Iterator[RecordBatch]:
        """Yield unknown names before the appointments that refer to them.

        Otherwise an interruption could leave appointments without names.
        """
        for batch in batches:
            for names in self._names:
                yield from names.of(batch)
            yield batch

    def _attendees(self) -> Iterator[RecordBatch]:
        """Yield attendees, or skip their crawl in an account without group appointments.

        The crawl would take long for nothing: Cliniko also lists an attendee for each individual appointment.
        """
        with self._reading.runtime.database.organization(self._reading.organization_id) as connection:
            there_are_groups = has_groups(connection)
        if there_are_groups:
            return self._reading.read(IN_GROUPS)
        return self._reading.leave_out(IN_GROUPS, self._groups_horizon, "the account has no group appointments")


@dataclass
class _Names:
    """The names of appointment types or of practitioners. `column` of appointments refers to them.

    The names are read when a full crawl of them is due, and again when an appointment has an id that is not stored. If
    names are still missing after that, the list `others` is read.
    """

    reading: AccountReading
    source: Source[Any]
    column: str
    others: Resource[Practitioner] | None = None
    _known: set[str] | None = None

    def of_full_crawl(self) -> Iterator[RecordBatch]:
        if self.reading.plan(self.source).is_full:
            yield from self.reading.read(self.source)
            if self._stored(named=False):
                yield from self._read_others()

    def _read_others(self) -> Iterator[RecordBatch]:
        if self.others is not None:
            yield from self.reading.read_beside(self.others, self.source)

    def of(self, batch: RecordBatch) -> Iterator[RecordBatch]:
        place = APPOINTMENTS.written.index(self.column)
        ids = {str(row[place]) for row in batch.rows if row[place] is not None}
        if not ids or not ids - self._stored():
            return
        yield from self.reading.read_full(self.source, "an appointment refers to an unknown id")
        self._known = None
        # The batches of `_read_others` may not be written yet, so collect their ids here.
        others: set[str] = set()
        if ids - self._stored():
            for found in self._read_others():
                others.update(str(row[found.table.written.index("id")]) for row in found.rows)
                yield found
        # Store ids that have no name in Cliniko. Otherwise later syncs would request the names again.
        nameless = sorted(ids - self._stored() - others)
        rows = [(id_, None, _EPOCH, _EPOCH) for id_ in nameless]
        yield RecordBatch(self.source.resource.name, self.source.table, rows)
        self._known = self._stored() | set(nameless) | others

    def _stored(self, *, named: bool = True) -> set[str]:
        """Return all stored ids. With `named=False`, return only the ids without a name."""
        if named and self._known is not None:
            return self._known
        with self.reading.runtime.database.organization(self.reading.organization_id) as connection:
            if not named:
                return nameless_ids(connection, self.source.table)
            self._known = stored_ids(connection, self.source.table)
        return self._known


@dg.asset(
    key=["cliniko", "appointments"],
    partitions_def=ORGANIZATIONS,
    io_manager_key="postgres",
    group_name="cliniko",
    kinds={"python", "postgres"},
    owners=["team:data-engineering"],
    description=(
        "Every individual and group appointment of the organization's Cliniko account, cancelled, archived and deleted"
        " ones included. It also fills cliniko.attendees (of group appointments), cliniko.appointment_types and"
        " cliniko.practitioners."
    ),
    metadata={
        "dagster/table_name": "cliniko.appointments",
        "dagster/column_schema": column_schema(
            ("organization_id", "text", "the organization's id, which row-level security checks"),
            ("kind", "text", "individual or group"),
            ("id", "text", "Cliniko's id, digits"),
            ("patient_id", "text", "for individual appointments only; see cliniko.attendees for groups"),
            ("appointment_type_id", "text", ""),
            ("practitioner_id", "text", ""),
            ("starts_at", "timestamptz", ""),
            ("ends_at", "timestamptz", ""),
            ("cancelled_at", "timestamptz", "for individual appointments only; see cliniko.attendees for groups"),
            ("archived_at", "timestamptz", ""),
            ("deleted_at", "timestamptz", ""),
            ("did_not_arrive", "boolean", "a no-show at an individual appointment; see cliniko.attendees for groups"),
            ("created_at", "timestamptz", "in Cliniko"),
            ("updated_at", "timestamptz", "in Cliniko"),
            ("synced_at", "timestamptz", "last write of this row"),
            ("vanished_at", "timestamptz", "when a full sync first found it deleted in Cliniko"),
        ),
    },
)
def appointments(
    context: dg.AssetExecutionContext,
    config: ExtractionConfig,
    runtime: dg.ResourceParam[Runtime],
    cliniko: dg.ResourceParam[ClinikoResource],
) -> RecordStream:
    """Return a stream of all or changed appointments, with their attendees and names."""
    reading = AccountReading(runtime, cliniko, context.partition_key, config.full, config.accept_deletions, context.log)
    return reading.stream(SOURCES, _AppointmentReading(reading).batches)
