"""A simulated clinic. Its events, such as bookings and merges of patients, produce records."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from cliniko_pipeline.sandbox.accounts import records
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.accounts.people import Person
from cliniko_pipeline.sandbox.accounts.records import Booking, Record, Site, instant
from cliniko_pipeline.sandbox.wire import LINK_PREFIX, link

CANCELLATION_REASONS = ((10, "Feeling Better"), (30, "Sick"), (40, "Away"), (50, "Other"), (60, "Work"))


class Outcome(Enum):
    """The outcome of a booking."""

    KEPT = "kept"
    NO_SHOW = "no-show"
    CANCELLED = "cancelled"
    ARCHIVED = "archived"
    DELETED = "deleted"


@dataclass(slots=True)
class ClinicPatient:
    """A patient's record, the invented person, and the records that link to the patient."""

    record: Record
    person: Person
    bookings: list[Record] = field(default_factory=list[Record])
    attendees: list[Record] = field(default_factory=list[Record])

    @property
    def id(self) -> str:
        """The patient's id."""
        return str(self.record["id"])

    @property
    def name(self) -> str:
        """First and last name as the record has them."""
        return f"{self.record['first_name']} {self.record['last_name']}"


class Clinic:
    """The records of one account.

    `now` (aware, UTC) is the end of the data set. No record was made or changed later.
    """

    def __init__(self, country: str, now: datetime, dice: random.Random, new_id: Callable[[str], str]) -> None:
        self.country = country
        self.now = now
        self.dice = dice
        self.patients: list[ClinicPatient] = []
        self._new_id = new_id
        self._records: dict[str, list[Record]] = {}
        self._places: dict[str, int] = {}
        self._minutes: dict[str, int] = {}
        self._opened = instant(now - timedelta(days=1300))

    def account(self, name: str, shard: str, api_key: str) -> Account:
        """Return an account with the records so far."""
        return Account.from_records(name, shard, api_key, self._records)

    def records_of(self, resource: str) -> list[Record]:
        """Return the resource's records, to be changed in place."""
        return self._records.setdefault(resource, [])

    def add_business(self, name: str) -> str:
        """Open a business; return its id."""
        record_id = self._new_id("businesses")
        return self._add("businesses", records.business(record_id, name, self.country, self._opened))

    def add_practitioner(self, person: Person) -> str:
        """Employ a practitioner; return the practitioner's id."""
        record_id = self._new_id("practitioners")
        return self._add("practitioners", records.practitioner(record_id, person, self._opened))

    def add_appointment_type(self, name: str, minutes: int, places: int = 1) -> str:
        """Offer an appointment type; return its id. With `places` above 1, it is a class."""
        record_id = self._new_id("appointment_types")
        self._places[record_id], self._minutes[record_id] = places, minutes
        record = records.appointment_type(record_id, name, minutes, places, self._opened)
        return self._add("appointment_types", record)

    def add_patient(self, person: Person, created: datetime, updated: datetime | None = None) -> ClinicPatient:
        """Register a patient."""
        record_id = self._new_id("patients")
        changed = instant(min(updated or created, self.now))
        record = records.patient(record_id, person, self.country, instant(created), changed)
        self._add("patients", record)
        patient = ClinicPatient(record, person)
        self.patients.append(patient)
        return patient

    def book(self, patient: ClinicPatient, site: Site, starts: datetime, outcome: Outcome) -> Record:
        """Book an individual appointment, with its one attendee, and settle its outcome."""
        booked = self._booked(starts)
        booking = self._booking(site, starts, booked)
        record = records.individual_appointment(booking, site, patient.id, patient.name)
        self._add("individual_appointments", record)
        attendee = self._attend(record, patient, booked)
        patient.bookings.append(record)
        settled = self._settle(booked, starts, outcome)
        for concluded in (record, attendee):
            self.conclude(concluded, outcome, settled)
        if starts <= self.now and outcome in {Outcome.KEPT, Outcome.NO_SHOW}:
            record["did_not_arrive"] = outcome is Outcome.NO_SHOW
            record["patient_arrived"] = attendee["arrived"] = outcome is Outcome.KEPT
        return record

    def open_class(self, site: Site, starts: datetime, patients: Iterable[ClinicPatient]) -> Record:
        """Schedule a class, and let each patient book a place."""
        booked = self._booked(starts)
        booking = self._booking(site, starts, booked)
        record = records.group_appointment(booking, site, [], self._places[site.appointment_type_id])
        self._add("group_appointments", record)
        for patient in patients:
            self.join(record, patient)
        return record

    def join(self, group: Record, patient: ClinicPatient) -> Record:
        """Give the patient a place in the class, without changing the updated_at of the class."""
        starts = datetime.fromisoformat(group["starts_at"])
        created = datetime.fromisoformat(group["created_at"])
        booked = created + (min(starts, self.now) - created) * self.dice.random()
        attendee = self._attend(group, patient, booked)
        if patient.id not in group["patient_ids"]:
            group["patient_ids"].append(patient.id)
        if starts <= self.now:
            attendee["arrived"] = self.dice.random() > 0.06
            attendee["updated_at"] = instant(min(starts + timedelta(hours=1), self.now))
        return attendee

    def leave(self, group: Record, attendee: Record, patient: ClinicPatient) -> None:
        """Cancel the patient's place in the class."""
        created = datetime.fromisoformat(attendee["created_at"])
        self.conclude(attendee, Outcome.CANCELLED, created + timedelta(minutes=self.dice.randint(5, 600)))
        attendee["arrived"] = None
        if patient.id in group["patient_ids"]:
            group["patient_ids"].remove(patient.id)

    def block(self, site: Site, starts: datetime) -> None:
        """Keep a time free of bookings."""
        booking = self._booking(site, starts, starts - timedelta(days=30))
        self._add("unavailable_blocks", records.unavailable_block(booking, site))

    def merge(self, gone: ClinicPatient, kept: ClinicPatient, at: datetime, *, left_behind: int = 0) -> None:
        """Merge patient `gone` into `kept`, who gets all bookings except the latest `left_behind`."""
        gone.record["merged_at"] = gone.record["archived_at"] = gone.record["updated_at"] = instant(at)
        gone.record["merged_with_patient"] = link(f"patients/{kept.id}")
        for ours, theirs in ((gone.bookings, kept.bookings), (gone.attendees, kept.attendees)):
            moving = max(len(ours) - left_behind, 0)
            for record in ours[:moving]:
                record["patient"] = link(f"patients/{kept.id}")
                record["updated_at"] = max(str(record["updated_at"]), instant(at))
            theirs.extend(ours[:moving])
            del ours[:moving]
        self._rename_in_classes(gone, kept)

    def _rename_in_classes(self, gone: ClinicPatient, kept: ClinicPatient) -> None:
        staying = {str(attendee["booking"]["links"]["self"]) for attendee in gone.attendees}
        for group in self.records_of("group_appointments"):
            if gone.id in group["patient_ids"] and f"{LINK_PREFIX}/bookings/{group['id']}" not in staying:
                other_ids = [patient_id for patient_id in group["patient_ids"] if patient_id != gone.id]
                group["patient_ids"] = list(dict.fromkeys([*other_ids, kept.id]))

    def _add(self, resource: str, record: Record) -> str:
        self.records_of(resource).append(record)
        return str(record["id"])

    def _booked(self, starts: datetime) -> datetime:
        ahead = timedelta(days=self.dice.randint(1, 21), seconds=self.dice.randrange(86_400))
        return min(starts - ahead, self.now - timedelta(seconds=self.dice.randrange(60, 400_000)))

    def _booking(self, site: Site, starts: datetime, booked: datetime) -> Booking:
        minutes = self._minutes[site.appointment_type_id]
        return Booking(
            id=self._new_id("bookings"),
            starts_at=instant(starts),
            ends_at=instant(starts + timedelta(minutes=minutes)),
            created_at=instant(booked),
            updated_at=instant(booked),
        )

    def _attend(self, booking: Record, patient: ClinicPatient, booked: datetime) -> Record:
        at = instant(booked)
        record = records.attendee(self._new_id("attendees"), str(booking["id"]), patient.id, at, at)
        self._add("attendees", record)
        patient.attendees.append(record)
        return record

    def _settle(self, booked: datetime, starts: datetime, outcome: Outcome) -> datetime:
        """Return the moment at which the booking gets its final state."""
        if outcome is Outcome.CANCELLED:
            return booked + (min(starts, self.now) - booked) * self.dice.random()
        return starts + timedelta(minutes=self.dice.randint(1, 90)) if starts <= self.now else booked

    def conclude(self, record: dict[str, Any], outcome: Outcome, at: datetime) -> None:
        """Note the outcome, and the moment of it, in a record of any kind."""
        moment = instant(min(at, self.now))
        record["updated_at"] = max(str(record["updated_at"]), moment)
        if outcome is Outcome.ARCHIVED:
            record["archived_at"] = moment
        elif outcome is Outcome.DELETED:
            record["deleted_at"] = moment
        elif outcome is Outcome.CANCELLED:
            record["cancelled_at"] = moment
            number, text = CANCELLATION_REASONS[len(str(record["id"]) + moment[-3]) % 5]
            record["cancellation_reason"], record["cancellation_reason_description"] = number, text
