"""Cliniko's records without clinical and financial fields, and their resources."""

from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

import msgspec


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record of a resource, with instants in UTC and ids as text of 1 to 20 digits."""

    id: str
    created_at: datetime
    updated_at: datetime

    def __repr__(self) -> str:
        # Show only the id, because representations end up in logs.
        return f"<{type(self).__name__} {self.id}>"


class Patient(Record, frozen=True, gc=False):
    """A patient. `merged_into_id` is the id of the patient that this patient was merged into."""

    first_name: str | None = None
    last_name: str | None = None
    email: str | None = None
    archived_at: datetime | None = None
    deleted_at: datetime | None = None
    merged_at: datetime | None = None
    merged_into_id: str | None = None


class IndividualAppointment(Record, frozen=True, gc=False, kw_only=True):
    """An appointment of one patient. Related ids are None if Cliniko gives no link."""

    patient_id: str | None = None
    appointment_type_id: str | None = None
    practitioner_id: str | None = None
    starts_at: datetime
    ends_at: datetime | None = None
    cancelled_at: datetime | None = None
    archived_at: datetime | None = None
    deleted_at: datetime | None = None
    did_not_arrive: bool = False


class GroupAppointment(Record, frozen=True, gc=False, kw_only=True):
    """An appointment of several patients, who are its attendees."""

    appointment_type_id: str | None = None
    practitioner_id: str | None = None
    starts_at: datetime
    ends_at: datetime | None = None
    archived_at: datetime | None = None
    deleted_at: datetime | None = None


class Attendee(Record, frozen=True, gc=False):
    """A patient's place in a booking. A booking is an individual or a group appointment."""

    booking_id: str | None = None
    patient_id: str | None = None
    arrived: bool | None = None
    cancelled_at: datetime | None = None
    archived_at: datetime | None = None
    deleted_at: datetime | None = None


class AppointmentType(Record, frozen=True, gc=False):
    """A kind of appointment."""

    name: str | None = None
    archived_at: datetime | None = None


class Practitioner(Record, frozen=True, gc=False):
    """A practitioner. `name` is the display name, else the label, else the first and last name."""

    name: str | None = None


UNANSWERED = "not answered by Cliniko, not even alone"


class RejectedRecord(msgspec.Struct, frozen=True):
    """A record that could not be read or understood.

    `reason` contains the field and the broken rule, never the value. If Cliniko fails to return a record, its `reason`
    is UNANSWERED with the record's place in brackets.
    """

    resource: str
    id: str | None
    reason: str


RecordT = TypeVar("RecordT", bound=Record)


@dataclass(frozen=True, slots=True)
class Resource(Generic[RecordT]):
    """A list in Cliniko's API.

    `name` is the key of the records in a response and, without a `path`, the last part of the URL. Without the filters
    `include_everything`, Cliniko leaves out archived, cancelled or deleted records (observed in live accounts). The
    filters use only fields that the OpenAPI file calls filterable, because other fields lead to a 400.
    """

    name: str
    record: type[RecordT]
    include_everything: tuple[str, ...] = ()
    path: str | None = None


PATIENTS = Resource("patients", Patient, ("archived_at:*",))
INDIVIDUAL_APPOINTMENTS = Resource(
    "individual_appointments", IndividualAppointment, ("archived_at:*", "cancelled_at:*", "deleted_at:*")
)
GROUP_APPOINTMENTS = Resource("group_appointments", GroupAppointment, ("archived_at:*", "deleted_at:*"))
ATTENDEES = Resource("attendees", Attendee, ("archived_at:*", "cancelled_at:*", "deleted_at:*"))
APPOINTMENT_TYPES = Resource("appointment_types", AppointmentType, ("archived_at:*",))
PRACTITIONERS = Resource("practitioners", Practitioner)
INACTIVE_PRACTITIONERS = Resource("practitioners", Practitioner, path="practitioners/inactive")
"""Former practitioners, who are in no other list (observed in live accounts)."""
