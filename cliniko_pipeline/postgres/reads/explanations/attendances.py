"""The attendances of a person, and why some of them are not counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from cliniko_pipeline.postgres.engine import sql
from cliniko_pipeline.postgres.reads.explanations.person import values_of

Window = Literal["upcoming", "recent", "earlier", "unknown"]

LeftOut = Literal[
    "cancelled",
    "archived",
    "deleted",
    "booking_archived",
    "booking_deleted",
    "vanished",
    "booking_vanished",
    "booking_unknown",
    "no_show",
    "counted_once",
]
"""Why an attendance is not counted. `vanished` means that a full sync no longer found the record in Cliniko."""

_EVENTS: tuple[LeftOut, ...] = (
    "cancelled",
    "archived",
    "deleted",
    "vanished",
    "booking_archived",
    "booking_deleted",
    "booking_vanished",
)


@dataclass(frozen=True)
class Attendance:
    """An individual appointment, or one attendee of a group.

    Attributes:
        id: the id of the individual appointment or of the group's booking; None if the attendee has no booking.
        patient_id: the patient id in the record, which is one of the person's ids.
        counts: whether the attendance is counted.
        left_out: the reasons why it is not counted, with the time if the reason is an event.
        counted_attendee_id: the other attendee by which the same group appointment is counted.
    """

    kind: Literal["individual", "group"]
    id: str | None
    attendee_id: str | None
    patient_id: str
    starts_at: datetime | None
    appointment_type: str | None
    practitioner: str | None
    window: Window
    counts: bool
    is_no_show: bool
    left_out: tuple[tuple[LeftOut, datetime | None], ...]
    counted_attendee_id: str | None
    synced_at: datetime


@dataclass(frozen=True)
class Counts:
    """The numbers of attendances that public.active_patients shows."""

    recent: int
    upcoming: int
    total: int
    last: datetime | None


def read_attendances(
    connection: Connection, patient_ids: Sequence[str], parameters: Mapping[str, Any]
) -> tuple[Attendance, ...]:
    """Return the patients' attendances, latest first. `parameters` are as in active_patients.sql."""
    rows = connection.execute(sa.text(sql("explain/attendances")), {"patient_ids": list(patient_ids), **parameters})
    return tuple(Attendance(**values_of(Attendance, row), left_out=_left_out(row)) for row in rows.mappings())


def count(attendances: Sequence[Attendance]) -> Counts:
    """Return the numbers of counted attendances."""
    counted = [attendance for attendance in attendances if attendance.counts]
    past = [attendance.starts_at for attendance in counted if attendance.window != "upcoming"]
    return Counts(
        recent=sum(attendance.window == "recent" for attendance in counted),
        upcoming=sum(attendance.window == "upcoming" for attendance in counted),
        total=len(counted),
        last=max(filter(None, past), default=None),
    )


def _left_out(row: RowMapping) -> tuple[tuple[LeftOut, datetime | None], ...]:
    if row["counts"]:
        return ()
    at = {event: row[f"{event}_at"] for event in _EVENTS}
    # Marking a record as vanished sets `deleted_at` to the same time, which is then no reason of its own.
    events: list[tuple[LeftOut, datetime | None]] = [
        (event, at[event])
        for event in _EVENTS
        if at[event] is not None
        and not (event == "deleted" and at[event] == at["vanished"])
        and not (event == "booking_deleted" and at[event] == at["booking_vanished"])
    ]
    if not row["is_booking_known"]:
        events.append(("booking_unknown", None))
    if events:
        return tuple(events)
    return (("no_show" if row["counted_attendee_id"] is None else "counted_once", None),)
