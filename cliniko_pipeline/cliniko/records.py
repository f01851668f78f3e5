"""What the pipeline takes from Cliniko: typed records, and the resources they are read from.

Belongs here: the fields there is a reason to store, and nothing clinical or financial. Does not: how they
look in JSON (wire.py) and how they are fetched (crawl.py, client.py).
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

import msgspec


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record of a resource. Ids are text of 1 to 20 digits (above 2**53); instants are aware and in UTC."""

    id: str
    created_at: datetime
    updated_at: datetime

    def __repr__(self) -> str:
        # Records hold patients' data, and representations end up in logs.
        return f"<{type(self).__name__} {self.id}>"


class Patient(Record, frozen=True, gc=False):
    """A patient. One that was merged away names the patient that stays in `merged_into_id`."""

    first_name: str | None = None
    last_name: str | None = None
    email: str | None = None
    archived_at: datetime | None = None
    deleted_at: datetime | None = None
    merged_at: datetime | None = None
    merged_into_id: str | None = None


class IndividualAppointment(Record, frozen=True, gc=False, kw_only=True):
    """An appointment of one patient. A related id is None where Cliniko gives no link."""

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
    """An appointment of several patients: who they are, and who cancelled, stands in its attendees."""

    appointment_type_id: str | None = None
    practitioner_id: str | None = None
    starts_at: datetime
    ends_at: datetime | None = None
    archived_at: datetime | None = None
    deleted_at: datetime | None = None


class Attendee(Record, frozen=True, gc=False):
    """One patient's place in one booking, an individual or a group appointment; when, the booking knows."""

    booking_id: str | None = None
    patient_id: str | None = None
    arrived: bool | None = None
    cancelled_at: datetime | None = None
    archived_at: datetime | None = None
    deleted_at: datetime | None = None


class AppointmentType(Record, frozen=True, gc=False):
    """A kind of appointment, for its name."""

    name: str | None = None
    archived_at: datetime | None = None


class Practitioner(Record, frozen=True, gc=False):
    """Someone who sees patients, by the first of display name, label, first and last name that is not blank."""

    name: str | None = None


UNANSWERED = "not answered by Cliniko, not even alone"


class RejectedRecord(msgspec.Struct, frozen=True):
    """A record that could not be read or understood.

    `reason` names the field and the rule, never the value; of a record that Cliniko does not answer it is UNANSWERED,
    and in brackets where the record stands.
    """

    resource: str
    id: str | None
    reason: str


RecordT = TypeVar("RecordT", bound=Record)


@dataclass(frozen=True, slots=True)
class Resource(Generic[RecordT]):
    """A list that Cliniko offers.

    `name` is the key of its records in an answer and, where there is no `path`, the last part of its address.
    `include_everything` are the filters without which Cliniko leaves out what is archived, cancelled or deleted
    (observed against live accounts); only fields that the published OpenAPI file calls filterable, since any other
    is refused with 400.
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
"""Those who left: they are in no other list (observed against live accounts)."""
