"""The fields of Cliniko's JSON that the pipeline uses, and their conversion to records."""

import msgspec

from cliniko_pipeline.cliniko.decoding.values import (
    Link,
    flag,
    identifier,
    instant,
    linked_id,
    linked_id_or_none,
    optional_instant,
    text,
)
from cliniko_pipeline.cliniko.records import (
    AppointmentType,
    Attendee,
    GroupAppointment,
    IndividualAppointment,
    Patient,
    Practitioner,
    Record,
)


class _Entry(msgspec.Struct, gc=False):
    id: str | int
    created_at: str
    updated_at: str


class _Patient(_Entry, gc=False):
    first_name: str | None = None
    last_name: str | None = None
    email: str | None = None
    archived_at: str | None = None
    deleted_at: str | None = None
    merged_at: str | None = None
    merged_with_patient: Link | str | None = None

    def record(self) -> Patient:
        return Patient(
            identifier("id", self.id),
            instant("created_at", self.created_at),
            instant("updated_at", self.updated_at),
            text("first_name", self.first_name),
            text("last_name", self.last_name),
            text("email", self.email) or None,
            optional_instant("archived_at", self.archived_at),
            optional_instant("deleted_at", self.deleted_at),
            optional_instant("merged_at", self.merged_at),
            linked_id("merged_with_patient", self.merged_with_patient),
        )


class _GroupAppointment(_Entry, gc=False, kw_only=True):
    starts_at: str
    ends_at: str | None = None
    archived_at: str | None = None
    deleted_at: str | None = None
    appointment_type: Link | str | None = None
    practitioner: Link | str | None = None

    def record(self) -> GroupAppointment:
        return GroupAppointment(
            identifier("id", self.id),
            instant("created_at", self.created_at),
            instant("updated_at", self.updated_at),
            appointment_type_id=linked_id_or_none(self.appointment_type),
            practitioner_id=linked_id_or_none(self.practitioner),
            starts_at=instant("starts_at", self.starts_at),
            ends_at=optional_instant("ends_at", self.ends_at),
            archived_at=optional_instant("archived_at", self.archived_at),
            deleted_at=optional_instant("deleted_at", self.deleted_at),
        )


class _IndividualAppointment(_Entry, gc=False, kw_only=True):
    starts_at: str
    ends_at: str | None = None
    cancelled_at: str | None = None
    archived_at: str | None = None
    deleted_at: str | None = None
    did_not_arrive: bool | str | None = None
    patient: Link | str | None = None
    appointment_type: Link | str | None = None
    practitioner: Link | str | None = None

    def record(self) -> IndividualAppointment:
        return IndividualAppointment(
            identifier("id", self.id),
            instant("created_at", self.created_at),
            instant("updated_at", self.updated_at),
            patient_id=linked_id("patient", self.patient),
            appointment_type_id=linked_id_or_none(self.appointment_type),
            practitioner_id=linked_id_or_none(self.practitioner),
            starts_at=instant("starts_at", self.starts_at),
            ends_at=optional_instant("ends_at", self.ends_at),
            cancelled_at=optional_instant("cancelled_at", self.cancelled_at),
            archived_at=optional_instant("archived_at", self.archived_at),
            deleted_at=optional_instant("deleted_at", self.deleted_at),
            did_not_arrive=flag("did_not_arrive", self.did_not_arrive) or False,
        )


class _Attendee(_Entry, gc=False):
    arrived: bool | str | None = None
    cancelled_at: str | None = None
    archived_at: str | None = None
    deleted_at: str | None = None
    booking: Link | str | None = None
    patient: Link | str | None = None

    def record(self) -> Attendee:
        return Attendee(
            identifier("id", self.id),
            instant("created_at", self.created_at),
            instant("updated_at", self.updated_at),
            linked_id("booking", self.booking),
            linked_id("patient", self.patient),
            flag("arrived", self.arrived),
            optional_instant("cancelled_at", self.cancelled_at),
            optional_instant("archived_at", self.archived_at),
            optional_instant("deleted_at", self.deleted_at),
        )


class _AppointmentType(_Entry, gc=False):
    name: str | None = None
    archived_at: str | None = None

    def record(self) -> AppointmentType:
        return AppointmentType(
            identifier("id", self.id),
            instant("created_at", self.created_at),
            instant("updated_at", self.updated_at),
            # A blank name becomes None. Any other name is kept unchanged.
            name if (name := text("name", self.name)) and name.strip() else None,
            optional_instant("archived_at", self.archived_at),
        )


class _Practitioner(_Entry, gc=False):
    display_name: str | None = None
    label: str | None = None
    first_name: str | None = None
    last_name: str | None = None

    def record(self) -> Practitioner:
        full_name = f"{self.first_name or ''} {self.last_name or ''}"
        return Practitioner(
            identifier("id", self.id),
            instant("created_at", self.created_at),
            instant("updated_at", self.updated_at),
            _first_not_blank(self.display_name, self.label, full_name),
        )


def _first_not_blank(*names: str | None) -> str | None:
    clean = ((text("name", name) or "").strip() for name in names)
    return next(filter(None, clean), None)


WIRE_TYPES: dict[type[Record], type[msgspec.Struct]] = {
    Patient: _Patient,
    IndividualAppointment: _IndividualAppointment,
    GroupAppointment: _GroupAppointment,
    Attendee: _Attendee,
    AppointmentType: _AppointmentType,
    Practitioner: _Practitioner,
}
