"""A clinic whose Cliniko account changes, and the rows that the pipeline must have stored after a sync.

`history_runs` runs the syncs, and `independent` computes the expected numbers.

The pipeline keeps a hard-deleted record until a full sync misses it, and then marks it as deleted. It keeps the last
readable version of an unreadable record. A record is deleted or made unreadable only if it has not changed since the
last quiet sync, because otherwise its stored version would be unknown.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline_tests.support.hostile_accounts import (
    ContactRow,
    WireRecord,
    appointment_type,
    attendee,
    cliniko_text,
    contact,
    group_appointment,
    individual_appointment,
    link,
    patient,
    practitioner,
)

START = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
MAX_CLOCK_SKEW_SECONDS = 60
"""Largest difference between the server's clock and the true time."""

RESOURCES = ("patients", "individual_appointments", "group_appointments", "attendees")
NAMES = ("appointment_types", "practitioners")

_FIRST_NAMES = ("Ann", "Bo", "Cy", "Ann")
_LAST_NAMES = ("Lee", "Fam", "Gross")
_EMAILS = (None, "ann@example.org", " ANN@example.org", "fam@example.org", "bo@example.org", None)
# Starts of appointments relative to START. They are around the start of the window, around now, and far from both.
_STARTS = (
    timedelta(days=-1),
    timedelta(days=-59, hours=-23),
    timedelta(days=-60, minutes=-5),
    timedelta(days=-30),
    timedelta(hours=1),
    timedelta(days=20),
    timedelta(days=-3),
    timedelta(days=-400),
    timedelta(days=-10),
    timedelta(minutes=-1),
)
_ENDED = "2026-06-01T00:00:00Z"
_UNREADABLE = "soon"

Key = tuple[str, str]
"""A resource and the id of one of its records."""


@dataclass
class ServerClock:
    """The server's clock. It is `ahead` seconds ahead of the true time, which is START plus `passed` seconds."""

    passed: float = 0.0
    ahead: int = 0

    def __call__(self) -> float:
        return self.now.timestamp()

    @property
    def now(self) -> datetime:
        return START + timedelta(seconds=self.passed + self.ahead)

    def set_ahead(self, seconds: int) -> None:
        self.ahead = max(-MAX_CLOCK_SKEW_SECONDS, min(MAX_CLOCK_SKEW_SECONDS, seconds))


@dataclass(frozen=True)
class Change:
    """A change at a clinic. `which` chooses the record, and `value` chooses the rest. Both wrap around."""

    kind: str
    which: int = 0
    value: int = 0


@dataclass(frozen=True)
class Beginning:
    """The numbers of old, unchanged records in the account at the start."""

    patients: int = 0
    individual_appointments: int = 0
    group_appointments: int = 0
    attendees_of_each: int = 0


class ChangingClinic:
    """A clinic's account and the application's contacts. The server's clock gives the time of each change."""

    def __init__(self, organization_id: str, clock: ServerClock) -> None:
        self.id = organization_id
        self.clock = clock
        self.account = Account(organization_id, "au4", f"{organization_id}-au4")
        self.records: dict[str, dict[str, WireRecord]] = {name: {} for name in (*RESOURCES, *NAMES)}
        self.contacts: dict[UUID, ContactRow] = {}
        self.bad: set[Key] = set()
        self.gone: dict[Key, WireRecord | None] = {}
        self._understood: dict[Key, WireRecord] = {}
        self._unsettled: set[Key] = set()
        self._made = 90  # so that ids have two or three digits, which sort differently as text

    # --- Due rows -------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Note that a sync has read the current records."""
        for resource in RESOURCES:
            for record_id, record in self.records[resource].items():
                if (resource, record_id) not in self.bad:
                    self._understood[resource, record_id] = record
        self._unsettled.clear()

    def stored(self, resource: str, vanished: Iterable[Key]) -> dict[str, WireRecord]:
        """Return the records by id that must be stored. The records in `vanished` are marked as deleted."""
        known: dict[str, WireRecord | None] = {
            record_id: self._understood.get((resource, record_id)) if (resource, record_id) in self.bad else record
            for record_id, record in self.records[resource].items()
        }
        known |= {record_id: record for (of, record_id), record in self.gone.items() if of == resource}
        deleted = {record_id for of, record_id in vanished if of == resource}
        return {
            record_id: record | {"deleted_at": _ENDED} if record_id in deleted else record
            for record_id, record in known.items()
            if record is not None
        }

    def wire(self, vanished: Iterable[Key]) -> dict[str, list[WireRecord]]:
        """Return the account's records for the independent computation."""
        found = {resource: list(self.stored(resource, vanished).values()) for resource in RESOURCES}
        return found | {resource: list(self.records[resource].values()) for resource in NAMES}

    # --- Changes ---------------------------------------------------------------------------------------------

    def begin(self, beginning: Beginning) -> None:
        """Fill the account with records of the past two years, several of them in the same second."""
        for number in range(beginning.patients):
            record = patient(self._new_id(), f"Old{number}", "Hand", f"old{number}@example.org")
            self._add_old("patients", record, number)
        people = list(self.records["patients"]) or ["1"]
        for number in range(beginning.individual_appointments):
            booking = individual_appointment(self._new_id(), people[number % len(people)], self._start(number))
            self._add_old("individual_appointments", booking | self._names(), number)
            self._add_old("attendees", attendee(self._new_id(), booking["id"], people[number % len(people)]), number)
        for number in range(beginning.group_appointments):
            booking = group_appointment(self._new_id(), self._start(number))
            self._add_old("group_appointments", booking | self._names(), number)
            for place in range(beginning.attendees_of_each):
                record = attendee(self._new_id(), booking["id"], people[(number + place) % len(people)])
                self._add_old("attendees", record, number)
        for resource in (*RESOURCES, *NAMES):
            self.account.fill(resource, list(self.records[resource].values()))
        for number, person in enumerate([*people[:5], *people[-3:]]):
            self._save_contact(number, cliniko_patient_id=person)
        self._unsettled = {(resource, record_id) for resource in RESOURCES for record_id in self.records[resource]}

    def happen(self, change: Change) -> str:
        """Apply the change, and return a description of it."""
        done = CHANGES[change.kind](self, change.which, change.value)
        return f"{change.kind}: {done or 'no record for it'}"

    def _new_id(self) -> str:
        self._made += 1
        return str(self._made)

    def _start(self, value: int) -> str:
        return cliniko_text(START + _STARTS[value % len(_STARTS)] + timedelta(minutes=value // len(_STARTS) % 3))

    def _add_old(self, resource: str, record: WireRecord, number: int) -> None:
        at = cliniko_text(START - timedelta(days=700) + timedelta(hours=number // 3))
        self.records[resource][record["id"]] = record | {"created_at": at, "updated_at": at}

    def _add(self, resource: str, record: WireRecord) -> str:
        self._put(resource, record | {"created_at": cliniko_text(self.clock.now)})
        return record["id"]

    def _put(self, resource: str, record: WireRecord) -> None:
        record = record | {"updated_at": cliniko_text(self.clock.now)}
        self.records[resource][record["id"]] = record
        self.account.put(resource, record)
        self._unsettled.add((resource, record["id"]))

    def _set(self, resource: str, record: WireRecord | None, **changes: Any) -> str | None:
        if record is None:
            return None
        self._put(resource, record | changes)
        return record["id"]

    def _pick(
        self, resource: str, which: int, condition: Callable[[WireRecord], object] = lambda _: True
    ) -> WireRecord | None:
        """Return a readable record."""
        found = [
            record
            for record_id, record in self.records[resource].items()
            if (resource, record_id) not in self.bad and condition(record)
        ]
        return found[which % len(found)] if found else None

    def _settled(self, resource: str, which: int) -> WireRecord | None:
        """Return a record that has not changed since the last quiet sync.

        An attendee must belong to a group, because only such attendees must be stored.
        """
        found = [
            record
            for record_id, record in self.records[resource].items()
            if (resource, record_id) not in self._unsettled and (resource != "attendees" or self._in_group(record))
        ]
        return found[which % len(found)] if found else None

    def _in_group(self, record: WireRecord) -> bool:
        return self.is_group(linked(record, "booking"))

    def is_group(self, booking_id: str | None) -> bool:
        """Return whether the booking is, or was, a group appointment."""
        return booking_id in self.records["group_appointments"] or ("group_appointments", booking_id) in self.gone

    def _patient_id(self, which: int) -> str:
        found = self._pick("patients", which)
        return found["id"] if found else "1"

    def _names(self, value: int = 1) -> dict[str, Any]:
        """Return links to an appointment type and a practitioner. Some calls add new records for them."""
        found: dict[str, Any] = {}
        for place, resource in enumerate(NAMES):
            known = self.records[resource]
            if not known or value % 6 == 5 - place:
                self._made += 1
                name = f"{resource} {self._made}"
                made = {
                    "appointment_types": appointment_type(str(self._made), name),
                    "practitioners": practitioner(str(self._made), display_name=name),
                }
                self._put(resource, made[resource] | {"created_at": cliniko_text(self.clock.now)})
            found[resource.removesuffix("s")] = link(resource, list(known)[value % len(known)])
        return found

    def _save_contact(self, number: int, **columns: str | None) -> str:
        contact_id = uuid5(NAMESPACE_URL, f"{self.id}/{number}")
        old = self.contacts.get(contact_id, contact(number, self.id))
        self.contacts[contact_id] = {**old, "id": contact_id, **columns}
        return f"{number}"

    # --- Patients --------------------------------------------------------------------------------------------

    def add_patient(self, which: int, value: int) -> str:
        return self._add("patients", patient(self._new_id(), **_person(which), email=_EMAILS[value % len(_EMAILS)]))

    def rename_patient(self, which: int, value: int) -> str | None:
        return self._set("patients", self._pick("patients", which), **_person(value))

    def change_email(self, which: int, value: int) -> str | None:
        return self._set("patients", self._pick("patients", which), email=_EMAILS[value % len(_EMAILS)])

    def merge_patient(self, which: int, value: int) -> str | None:
        into = link("patients", self._patient_id(which + value))
        return self._set("patients", self._pick("patients", which), merged_at=_ENDED, merged_with_patient=into)

    # --- Appointments ----------------------------------------------------------------------------------------

    def book(self, which: int, value: int) -> str:
        """Add an individual appointment. Most have the attendee that Cliniko adds to such an appointment."""
        booking = individual_appointment(self._new_id(), self._patient_id(which), self._start(value))
        if value % 3:
            self._add("attendees", attendee(self._new_id(), booking["id"], self._patient_id(which)))
        return self._add("individual_appointments", booking | self._names(value))

    def reassign(self, which: int, value: int) -> str | None:
        record = self._pick("individual_appointments", which)
        return self._set("individual_appointments", record, patient=link("patients", self._patient_id(value * 7)))

    def toggle_no_show(self, which: int, _value: int) -> str | None:
        record = self._pick("individual_appointments", which)
        return self._set("individual_appointments", record, did_not_arrive=not (record or {}).get("did_not_arrive"))

    def add_group(self, which: int, value: int) -> str:
        booking = group_appointment(self._new_id(), self._start(which)) | self._names(value)
        self._add("group_appointments", booking)
        for place in range(value % 4):
            self._add("attendees", attendee(self._new_id(), booking["id"], self._patient_id(which + place)))
        return booking["id"]

    def join_group(self, which: int, value: int) -> str | None:
        group = self._pick("group_appointments", value)
        if group is None:
            return None
        arrived = (None, True, False)[value % 3]
        return self._add("attendees", attendee(self._new_id(), group["id"], self._patient_id(which), arrived=arrived))

    def readd_attendee(self, which: int, value: int) -> str | None:
        record = self._pick("attendees", which, self._in_group)
        if record is None:
            return None
        if value % 2:
            self._set("attendees", record, cancelled_at=_ENDED)
        again = attendee(self._new_id(), linked(record, "booking"), linked(record, "patient"))
        return self._add("attendees", again)

    # --- Many in one second ----------------------------------------------------------------------------------

    def import_patients(self, which: int, value: int) -> str:
        for number in range(_many(value)):
            self._add("patients", patient(self._new_id(), f"New{number}", f"Hand{which}"))
        return f"{_many(value)}"

    def import_appointments(self, which: int, value: int) -> str:
        for number in range(_many(value)):
            booking = individual_appointment(self._new_id(), self._patient_id(which + number), self._start(number))
            self._add("individual_appointments", booking | self._names())
        return f"{_many(value)}"

    def fill_group(self, which: int, value: int) -> str | None:
        group = self._pick("group_appointments", which)
        if group is None:
            return None
        for number in range(_many(value)):
            self._add("attendees", attendee(self._new_id(), group["id"], self._patient_id(which + number)))
        return f"{group['id']}, {_many(value)}"

    # --- Contacts --------------------------------------------------------------------------------------------

    def add_contact(self, which: int, value: int) -> str:
        columns = _person(value) | {"email": _EMAILS[which % len(_EMAILS)]}
        return self._save_contact(1000 + len(self.contacts) + which % 3, **columns)

    def _pick_contact(self, which: int) -> UUID | None:
        return list(self.contacts)[which % len(self.contacts)] if self.contacts else None

    def change_contact(self, which: int, value: int) -> str | None:
        if contact_id := self._pick_contact(which):
            columns = [
                {"cliniko_patient_id": self._patient_id(value)},
                {"cliniko_patient_id": None, "email": _EMAILS[value % len(_EMAILS)]},
                {"cliniko_patient_id": None, "email": None, **_person(value)},
            ]
            self.contacts[contact_id] = self.contacts[contact_id] | columns[value % len(columns)]
        return contact_id and f"{contact_id}"

    def remove_contact(self, which: int, _value: int) -> str | None:
        if contact_id := self._pick_contact(which):
            del self.contacts[contact_id]
        return contact_id and f"{contact_id}"

    # --- The ends of records ---------------------------------------------------------------------------------

    def hard_delete(self, resource: str, which: int) -> str | None:
        record = self._settled(resource, which)
        if record is None:
            return None
        key = resource, record["id"]
        self.gone[key] = self._understood.get(key)
        del self.records[resource][record["id"]]
        self.account.delete(resource, record["id"])
        return record["id"]

    def spoil(self, resource: str, which: int) -> str | None:
        record = self._settled(resource, which)
        if record is None:
            return None
        self.bad.add((resource, record["id"]))
        return self._set(resource, record, archived_at=_UNREADABLE)

    def repair(self, which: int, value: int) -> str | None:
        bad = sorted(key for key in self.bad if key not in self.gone)
        if not bad:
            return None
        resource, record_id = key = bad[which % len(bad)]
        self.bad.remove(key)
        self._set(resource, self.records[resource][record_id], archived_at=(None, _ENDED)[value % 2])
        return f"{resource} {record_id}"

    def add_bad(self, resource: str, which: int, value: int) -> str:
        new_id, start = self._new_id(), self._start(value)
        made = {
            "patients": patient(new_id, **_person(value)),
            "individual_appointments": individual_appointment(new_id, self._patient_id(which), start),
            "group_appointments": group_appointment(new_id, start),
        }[resource]
        self.bad.add((resource, made["id"]))
        return self._add(resource, made | {"archived_at": _UNREADABLE})


_Happens = Callable[[ChangingClinic, int, int], str | None]

CHANGES: dict[str, _Happens] = {
    "patient added": ChangingClinic.add_patient,
    "patient renamed": ChangingClinic.rename_patient,
    "patient's e-mail changed": ChangingClinic.change_email,
    "patient merged": ChangingClinic.merge_patient,
    "individual appointment added": ChangingClinic.book,
    "individual appointment given to another patient": ChangingClinic.reassign,
    "individual appointment a no-show, or not": ChangingClinic.toggle_no_show,
    "group added": ChangingClinic.add_group,
    "attendee added": ChangingClinic.join_group,
    "attendee added again": ChangingClinic.readd_attendee,
    "patients imported": ChangingClinic.import_patients,
    "individual appointments imported": ChangingClinic.import_appointments,
    "attendees imported": ChangingClinic.fill_group,
    "contact added": ChangingClinic.add_contact,
    "contact changed": ChangingClinic.change_contact,
    "contact removed": ChangingClinic.remove_contact,
    "bad record set right": ChangingClinic.repair,
}


def _toggling(resource: str, field: str) -> _Happens:
    def happens(clinic: ChangingClinic, which: int, value: int) -> str | None:
        condition = clinic._in_group if resource == "attendees" else lambda _: True
        record = clinic._pick(resource, which, condition)
        return clinic._set(resource, record, **{field: None if (record or {}).get(field) else _ENDED})

    return happens


def _moving(resource: str) -> _Happens:
    return lambda clinic, which, value: clinic._set(
        resource, clinic._pick(resource, which), starts_at=clinic._start(value)
    )


def _toggling_many(resource: str, field: str) -> _Happens:
    def happens(clinic: ChangingClinic, which: int, value: int) -> str | None:
        found = list(clinic.records[resource])
        touched = [
            record_id
            for record_id in found[which % max(1, len(found)) :][: _many(value)]
            if (resource, record_id) not in clinic.bad
        ]
        for record_id in touched:
            record = clinic.records[resource][record_id]
            clinic._set(resource, record, **{field: None if record.get(field) else _ENDED})
        return f"{len(touched)}"

    return happens


for _resource, _name in zip(RESOURCES, ("patient", "individual appointment", "group", "attendee"), strict=True):
    CHANGES |= {
        f"{_name} archived, or back": _toggling(_resource, "archived_at"),
        f"{_name} deleted, or back": _toggling(_resource, "deleted_at"),
        f"{_name} deleted for good": lambda clinic, which, _value, of=_resource: clinic.hard_delete(of, which),
        f"{_name} gone bad": lambda clinic, which, _value, of=_resource: clinic.spoil(of, which),
    }
    if _name in {"individual appointment", "attendee"}:
        CHANGES[f"{_name} cancelled, or back"] = _toggling(_resource, "cancelled_at")
    if _name in {"individual appointment", "group"}:
        CHANGES[f"{_name} moved"] = _moving(_resource)
    if _name != "attendee":
        CHANGES[f"bad {_name} added"] = lambda clinic, which, value, of=_resource: clinic.add_bad(of, which, value)
CHANGES["many individual appointments cancelled, or back"] = _toggling_many("individual_appointments", "cancelled_at")
CHANGES["many patients archived, or back"] = _toggling_many("patients", "archived_at")


def linked(record: Mapping[str, Any], relation: str) -> str | None:
    """Return the id in the record's link."""
    related = record.get(relation)
    return None if related is None else related["links"]["self"].rsplit("/", 1)[-1]


def instant(record: Mapping[str, Any], field: str) -> datetime | None:
    """Return the instant in the field."""
    return None if record.get(field) is None else datetime.fromisoformat(record[field])


def _person(value: int) -> dict[str, str]:
    return {
        "first_name": _FIRST_NAMES[value % len(_FIRST_NAMES)],
        "last_name": _LAST_NAMES[value % len(_LAST_NAMES)],
    }


def _many(value: int) -> int:
    return (12, 25, 110, 230)[value % 4]
