"""Hostile accounts, which are small sets of colliding Cliniko records and contacts.

No code of the pipeline is used. Records have all fields of Cliniko's records, and ids that are unique within the
resource, unless ``bad_records`` breaks them. Contacts contain only values that PostgreSQL can store. All names are
invented, and all addresses are under example.org.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

API = "https://api.au4.cliniko.com/v1"
ORGANIZATION = "hostile-clinic"
OTHER_ORGANIZATION = "other-clinic"

LARGEST_ID = 9_223_372_036_854_775_807
"""Largest signed 64-bit integer. Cliniko's newest ids have 19 digits, and no id is larger than this."""

WireRecord = dict[str, Any]
ContactRow = dict[str, Any]

_ENDED = "2025-08-01T00:00:00Z"
_RECENTLY = "2026-03-01T00:00:00Z"


@dataclass(frozen=True)
class Account:
    """One organization's records in Cliniko, the contacts of all organizations, and the current instant.

    ``records`` has wire records by resource, including archived and cancelled records. ``contacts`` has rows of
    public.contacts, with UUIDs as ids.
    """

    records: Mapping[str, Sequence[WireRecord]]
    contacts: Sequence[ContactRow]
    as_of: datetime
    organization_id: str = ORGANIZATION


def link(resource: str, record_id: str | int) -> dict[str, Any]:
    """Return a link to another record, as in ``patient``, ``booking`` or ``merged_with_patient``."""
    return {"links": {"self": f"{API}/{resource}/{record_id}"}}


def cliniko_text(moment: datetime) -> str:
    """Return the instant as Cliniko writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _record(resource: str, record_id: str | int, fields: WireRecord, changes: WireRecord) -> WireRecord:
    return {
        "id": record_id,
        "created_at": "2025-06-01T08:00:00Z",
        "updated_at": "2025-06-01T08:00:00Z",
        "links": {"self": f"{API}/{resource}/{record_id}"},
        **fields,
        **changes,
    }


def patient(
    record_id: str | int,
    first_name: str | None = "",
    last_name: str | None = "",
    email: str | None = None,
    merged_into: str | None = None,
    **changes: Any,
) -> WireRecord:
    """Return a patient. ``merged_into`` sets the merged_with_patient link."""
    fields = {
        "first_name": first_name,
        "last_name": last_name,
        "email": email,
        "date_of_birth": "1990-02-28",
        "patient_phone_numbers": [],
        "notes": "clinical text that nobody has business storing \U0001f926",
        "archived_at": None,
        "deleted_at": None,
        "merged_at": None,
        "merged_with_patient": None if merged_into is None else link("patients", merged_into),
    }
    return _record("patients", record_id, fields, changes)


def individual_appointment(
    record_id: str | int, patient_id: str | int | None, starts_at: str, **changes: Any
) -> WireRecord:
    """Return an individual appointment that is not cancelled. Without a patient id, its patient link is null."""
    fields = {
        "starts_at": starts_at,
        "ends_at": None,
        "cancelled_at": None,
        "archived_at": None,
        "deleted_at": None,
        "did_not_arrive": False,
        "patient": None if patient_id is None else link("patients", patient_id),
        "appointment_type": None,
        "practitioner": None,
        "business": link("businesses", 1),
        "attendees": {"links": {"self": f"{API}/individual_appointments/{record_id}/attendees"}},
    }
    return _record("individual_appointments", record_id, fields, changes)


def group_appointment(record_id: str | int, starts_at: str, **changes: Any) -> WireRecord:
    """Return a group appointment. Its attendees are separate records."""
    fields = {
        "starts_at": starts_at,
        "ends_at": None,
        "patient_ids": [],
        "archived_at": None,
        "deleted_at": None,
        "appointment_type": None,
        "practitioner": None,
        "business": link("businesses", 1),
        "attendees": {"links": {"self": f"{API}/group_appointments/{record_id}/attendees"}},
    }
    return _record("group_appointments", record_id, fields, changes)


def attendee(
    record_id: str | int, booking_id: str | int | None, patient_id: str | int | None, **changes: Any
) -> WireRecord:
    """Return an attendee of a group appointment or of an individual appointment. Cliniko has both."""
    fields = {
        "arrived": None,
        "cancelled_at": None,
        "archived_at": None,
        "deleted_at": None,
        "booking": None if booking_id is None else link("bookings", booking_id),
        "patient": None if patient_id is None else link("patients", patient_id),
    }
    return _record("attendees", record_id, fields, changes)


def appointment_type(record_id: str | int, name: str | None, **changes: Any) -> WireRecord:
    """Return an appointment type."""
    fields = {"name": name, "duration_in_minutes": 30, "archived_at": None}
    return _record("appointment_types", record_id, fields, changes)


def practitioner(record_id: str | int, **changes: Any) -> WireRecord:
    """Return a practitioner without names, except those given."""
    fields = {"display_name": None, "label": None, "first_name": None, "last_name": None, "active": True}
    return _record("practitioners", record_id, fields, changes)


def contact(number: int, organization_id: str = ORGANIZATION, **columns: str | None) -> ContactRow:
    """Return a row of public.contacts. Its id is `contact_id(number)`."""
    unset = dict.fromkeys(["cliniko_patient_id", "name", "first_name", "last_name", "email"])
    return {"id": contact_id(number), "organization_id": organization_id, **unset, **columns}


def contact_id(number: int) -> UUID:
    """Return the id of the contact with this number."""
    return UUID(int=number)


def _site(appointment_type_id: int, practitioner_id: int) -> WireRecord:
    return {
        "appointment_type": link("appointment_types", appointment_type_id),
        "practitioner": link("practitioners", practitioner_id),
    }


def hand_written_account() -> Account:
    """Return an account with cases for every rule about the numbers, as of 2026-03-31T12:00:00Z."""
    records = {
        "patients": _patients_by_hand(),
        "individual_appointments": _individual_appointments_by_hand(),
        "group_appointments": _group_appointments_by_hand(),
        "attendees": _attendees_by_hand(),
        "appointment_types": [
            appointment_type("1", "Stan\0dard"),
            appointment_type("2", " "),
            appointment_type("3", "Old type", archived_at="2025-08-01T00:00:00Z"),
        ],
        "practitioners": [
            practitioner("7", display_name="Dr Ray ", label="Ray"),
            practitioner("8", display_name=" ", label="Label Lo", first_name="Lo"),
            practitioner("9", display_name="", first_name="First", last_name="Last"),
            practitioner("10"),
        ],
    }
    return Account(records, _contacts_by_hand(), datetime(2026, 3, 31, 12, tzinfo=UTC))


def _patients_by_hand() -> list[WireRecord]:
    return [
        # A chain of merges (the first without merged_at), a loop with a chain into it, a patient merged into itself,
        # and a chain whose end has no record.
        patient(80, "Anna", "Before", merged_into="81"),
        patient("81", "Anne", "Between", merged_into="82", merged_at=_ENDED, archived_at=_ENDED),
        patient("82", "Ann", "Lee", "ann@example.org", archived_at="", deleted_at=""),
        patient("91", "Lou", "Loop", merged_into="1000"),
        patient("1000", "Lou", "Loop", merged_into="91"),
        patient("93", "Lou", "Loop", merged_into="1000"),
        patient("94", "Solo", "Loop", merged_into="94"),
        patient("95", "Abe", "Sent", merged_into="9999"),
        patient("96", "abe", "SENT"),
        patient("97", "Fred", "Free", "Free@example.org"),
        patient("98", "Not", "Merged", merged_at=_ENDED),
        # Contacts have the ids of these patients.
        patient("100", "Arch", "Ived", archived_at=_ENDED),
        patient("101", "Two", "Named"),
        patient("102", "Held", "Back", "held@example.org"),
        patient("103", "No", "Equal"),
        patient("104", "Both", "Equal"),
        patient("105", "Old", "Number"),
        patient("131", "Gone", "Person", deleted_at=_ENDED),
        patient("9223372036854775806", "Big", "Six"),
        patient("9223372036854775807", "Big", "Seven"),
        # These patients share e-mail addresses with contacts.
        patient("110", "Hans", "Gross", " Stra\u00dfe@example.org "),
        patient("111", "Mia", "Fam", "fam@example.org"),
        patient("112", "Tom", "Fam", "FAM@example.org"),
        patient("113", "Zoe", "Fam", "fam@example.org"),
        patient("114", "Ida", "Dup", "dup@example.org"),
        patient("115", "Ira", "Dup", "dup@example.org"),
        patient("116", "Some", "One", ""),
        patient("117", "Twin", "Contact", "twin@example.org"),
        patient("118", "Kim", "Part", "part@example.org"),
        patient("119", "Kay", "Part", "part@example.org"),
        # These patients share names with contacts.
        patient("120", "\ufb01n", "\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2"),
        patient("121", "Sam", "Same"),
        patient("122", "SAM", "same"),
        patient("123", "Two", "Contacts"),
        patient("124", "", " ", " "),
        patient("125", "Del", "Eted", "del@example.org", deleted_at=_ENDED),
        patient("126", "Del", "Eted"),
        patient("127", "Arch", "Two", archived_at=_ENDED),
        patient("128", "Nu\0l", "\ud800x"),
        patient("129", "Set", "Aside", archived_at="soon"),
        patient("130", "Real", "Person"),
    ]


def _contacts_by_hand() -> list[ContactRow]:
    return [
        contact(1, cliniko_patient_id=" 81 ", name="Somebody Else"),
        contact(2, cliniko_patient_id="93", name="Lou Loop"),
        contact(3, cliniko_patient_id="95", name="Abe Sent"),
        contact(4, cliniko_patient_id="9999", email="free@example.org"),
        contact(10, cliniko_patient_id="100"),
        contact(11, cliniko_patient_id="101", name="two  named"),
        contact(12, cliniko_patient_id="101", name="Other Name", email="held@example.org"),
        contact(13, cliniko_patient_id="103", name="First Other"),
        contact(14, cliniko_patient_id="103", name="Second Other"),
        contact(15, cliniko_patient_id="104", name="Both Equal"),
        contact(16, cliniko_patient_id="104", name="BOTH EQUAL"),
        contact(17, name="No Equal"),
        contact(18, cliniko_patient_id="0102", name="Old Number"),
        contact(19, cliniko_patient_id="131"),
        contact(20, email="STRASSE@example.org", name="H. G."),
        contact(21, email="fam@example.org", name="MIA  fam"),
        contact(22, email="fam@example.org", name=" ", first_name="Tom", last_name="Fam"),
        contact(23, email="zoe@example.org", name="Zoe Fam"),
        contact(24, email="dup@example.org", name="Some One"),
        contact(25, email="twin@example.org", name="Twin Contact"),
        contact(26, email="twin@example.org", name="Twin Contact"),
        contact(27, email="part@example.org", name="Kim Part"),
        contact(28, email="part@example.org", name="Kit Part"),
        contact(30, name="FIN  \u03a3\u038a\u03a3\u03a5\u03a6\u039f\u03a3"),
        contact(31, name="Sam Same"),
        contact(32, name="Two Contacts"),
        contact(33, name="Two\u00a0Contacts"),
        contact(34, cliniko_patient_id="", name="", first_name=" ", email=""),
        contact(35, name="Del Eted", email="del@example.org"),
        contact(36, name="Arch Two"),
        contact(37, name="Nul \ufffdx"),
        contact(38, cliniko_patient_id="129", name="Real Person"),
        contact(40, cliniko_patient_id="9223372036854775806"),
        contact(90, OTHER_ORGANIZATION, cliniko_patient_id="98", name="Not Merged"),
        contact(91, OTHER_ORGANIZATION, email="held@example.org", name="Held Back"),
    ]


def _individual_appointments_by_hand() -> list[WireRecord]:
    patientless = individual_appointment("15", None, _RECENTLY)
    del patientless["patient"]
    return [
        # Appointments of person 82, under all its patient ids, at, within and beyond both boundaries of the window.
        individual_appointment(1, 80, "2026-03-31T12:00:00Z", ends_at="2026-03-31T12:45:00Z", **_site(1, 7)),
        individual_appointment("2", "82", "2026-01-30T12:00:00Z", ends_at="", **_site(2, 8)),
        individual_appointment("3", "82", "2026-01-30T11:59:59Z"),
        individual_appointment("4", "82", "2026-03-31T12:00:01Z", did_not_arrive="", **_site(3, 9)),
        individual_appointment("5", "82", _RECENTLY, cancelled_at=_ENDED),
        individual_appointment("6", "82", _RECENTLY, archived_at=_ENDED),
        individual_appointment("7", "82", _RECENTLY, deleted_at=_ENDED),
        individual_appointment("8", "81", "2026-03-02T09:00:00Z", did_not_arrive=True, **_site(404, 10)),
        individual_appointment("10", "82", "2026-03-10T09:00:00.500Z", did_not_arrive=None),
        individual_appointment("9", "82", "2026-03-10T09:00:00.5Z", ends_at="2026-03-10T19:30:00+10:00"),
        individual_appointment("28", "82", "2026-03-08T10:00:00Z"),
        individual_appointment("31", "82", "2026-04-02T10:00:00Z"),
        # Rejected appointments, and appointments without a patient or a person.
        individual_appointment("11", "82", ""),
        individual_appointment("12", "82", "soon"),
        individual_appointment("13", None, _RECENTLY),
        individual_appointment("14", None, _RECENTLY, patient={"links": {"self": None}}),
        patientless,
        individual_appointment("16", "9999", _RECENTLY),
        individual_appointment("17", "95", _RECENTLY),
        # One appointment for each of the other people.
        individual_appointment("40", "100", _RECENTLY),
        individual_appointment("41", "110", _RECENTLY, did_not_arrive=True),
        individual_appointment("42", "102", _RECENTLY),
        individual_appointment("43", "111", "2026-05-01T00:00:00Z"),
        individual_appointment("44", "112", "2025-05-01T00:00:00Z"),
        individual_appointment("46", "125", _RECENTLY),
        individual_appointment("47", "121", _RECENTLY),
        individual_appointment("49", "131", _RECENTLY),
        individual_appointment("9223372036854775807", "9223372036854775806", _RECENTLY),
        individual_appointment("9223372036854775806", "9223372036854775807", _RECENTLY),
    ]


def _group_appointments_by_hand() -> list[WireRecord]:
    return [
        group_appointment("20", "2026-03-05T10:00:00Z", appointment_type=link("appointment_types", 1)),
        group_appointment("21", _RECENTLY, archived_at=_ENDED),
        group_appointment("22", _RECENTLY, deleted_at=_ENDED),
        group_appointment("23", _RECENTLY),
        group_appointment("24", _RECENTLY),
        group_appointment("25", "2026-03-06T10:00:00Z", practitioner=link("practitioners", 9)),
        group_appointment("26", "2026-03-07T10:00:00Z"),
        group_appointment("27", "2026-04-02T10:00:00Z", ends_at="2026-04-02T11:00:00Z"),
        group_appointment("28", "2026-03-08T10:00:00Z"),
        group_appointment("29", _RECENTLY),
        group_appointment("30", _RECENTLY),
        group_appointment("32", ""),
        group_appointment("45", "2026-02-15T08:00:00Z"),
    ]


def _attendees_by_hand() -> list[WireRecord]:
    return [
        # One person's three attendees of one group. The first is cancelled, and the last is of a merged patient.
        attendee("201", "20", "82", cancelled_at=_ENDED),
        attendee(202, 20, 82, arrived=True),
        attendee("203", "20", "81", arrived=False),
        # Attendees that are archived or deleted, or whose group is.
        attendee("204", "21", "82"),
        attendee("205", "22", "82"),
        attendee("206", "23", "82", archived_at=_ENDED),
        attendee("207", "24", "82", deleted_at=_ENDED),
        # A group where nobody arrived, a group where one arrival is unknown, a group that has not started, and a group
        # whose only arrival is unknown.
        attendee("208", "25", "82", arrived=False),
        attendee("209", "25", "80", arrived=False),
        attendee("210", "26", "82", arrived=False),
        attendee("211", "26", "82", arrived=""),
        attendee("212", "27", "82", arrived=False),
        attendee("213", "28", "82"),
        # Attendees without a patient, with an unreadable field, and of bookings that are not known groups.
        attendee("214", "30", None),
        attendee("215", "30", "82", cancelled_at="soon"),
        attendee("216", "1", "82", cancelled_at=_ENDED),
        attendee("217", "404", "82"),
        attendee("218", None, "82"),
        attendee("219", "32", "82"),
        # Attendees of the loop of merges.
        attendee("220", "45", "93", arrived=True),
        attendee("221", "45", "1000", arrived=""),
    ]


Name = tuple[str | None, str | None]

# Spellings of the names of a few people. In each list, most spellings are the same name, and some only look the same.
_PEOPLE: list[list[Name]] = [
    [
        ("Ann", "Lee"),
        ("ANN", "lee"),
        ("  Ann\u00a0", "\u3000Lee\t"),
        ("Ann\n Lee", ""),
        (None, "Ann\u2003Lee"),
        ("\uff21\uff4e\uff4e", "Lee"),
        ("A\0nn", "Lee\0"),
        ("Ann", "Le\u200be"),
    ],
    [("Stra\u00dfe", "Gro\u00df"), ("STRASSE", "GROSS"), ("stra\u1e9ee", "gross")],
    [
        ("\ufb01n", "\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2"),
        ("FIN", "\u03a3\u038a\u03a3\u03a5\u03a6\u039f\u03a3"),
        ("fin", "\u03c3\u03b9\u0301\u03c3\u03c5\u03c6\u03bf\u03c3"),
    ],
    [("\u0130pek", "I\u015f\u0131k"), ("i\u0307pek", "i\u015f\u0131k"), ("ipek", "I\u015f\u0131k")],
    [("Zo\u00eb", "\U0001f600"), ("Zoe\u0308", "\U0001f600"), ("Zoe", "\U0001f600")],
    [("\ud800Bo", "\u00b5"), ("\ufffdBo", "\u03bc"), ("\udfffbo", "\u039c"), ("Bo", "\u00b5")],
]
_BLANK_NAMES: list[Name] = [(None, None), ("", ""), (" ", "\u2003"), ("\0", None)]

_MAILBOXES: list[list[str]] = [
    ["ann@example.org", " Ann@Example.ORG\n", "a\0nn@example.org", "\uff41nn@example.org"],
    ["stra\u00dfe@example.org", "STRASSE@example.org"],
    ["\ufb01n@example.org", "FIN@example.org\u00a0"],
    ["\u0130@example.org", "i\u0307@example.org", "i@example.org"],
    ["\ud800@example.org", "\ufffd@example.org"],
]
_BLANK_EMAILS: list[str | None] = [None, "", " ", "\0"]

_LABELS: list[str | None] = ["Standard", "Pilates \U0001f9d8", "a\0b", "\udc00", " Dr\u00a0Who ", "", " ", None]
_TYPE_IDS = ["1", "900719925474099312"]
_PRACTITIONER_IDS = ["7", "8"]
_UNKNOWN_BOOKING_ID = "424242"

_NO_LINKS: list[Any] = [None, {}, {"links": None}, {"links": {}}, {"links": {"self": None}}, {"links": {"self": ""}}]
_UNREADABLE = ["soon", "2026-02-30T10:00:00Z", "2026-13-01T00:00:00Z", "2026-01-01T25:00:00Z", "01/02/2026"]
_ENDS = {
    "patients": ["archived_at", "deleted_at", "merged_at"],
    "individual_appointments": ["cancelled_at", "archived_at", "deleted_at"],
    "group_appointments": ["archived_at", "deleted_at"],
    "attendees": ["cancelled_at", "archived_at", "deleted_at"],
    "appointment_types": ["archived_at"],
}
_REFERENCES = ["{}", "{}", "{}", " {}\u00a0", "0{}", "{}.0", "#{}"]
"""Spellings of a patient id in contacts. Some of them do not match the id."""

_AS_OFS = [
    datetime(2026, 3, 31, 12, 0, 0, tzinfo=UTC),
    datetime(2026, 1, 1, 0, 0, 0, tzinfo=UTC),
    datetime(2028, 2, 29, 23, 59, 59, tzinfo=UTC),
    datetime(2026, 4, 5, 2, 30, 0, 500_000, tzinfo=UTC),
]
# Ids of 1 to 19 digits. The ids of a family differ only in the last digit.
_FAMILIES = ["", "8", "900719925474099", "123456789012345678", str(LARGEST_ID)[:-1]]
_IDS = st.sampled_from([f"{family}{digit}" for family in _FAMILIES for digit in range(1, LARGEST_ID % 10 + 1)])


@st.composite
def accounts(draw: st.DrawFn, *, activity_window_days: int = 60, bad_records: bool = False) -> Account:
    """Draw small hostile accounts, which shrink towards an empty account.

    Many instants are around the start of the window of `activity_window_days`. `bad_records` breaks some records, which
    then have no id, or missing or unreadable instants.
    """
    as_of = draw(st.sampled_from(_AS_OFS))
    drawing = _Drawing(draw, _instants(as_of, activity_window_days))
    records = drawing.records()
    if draw(st.sampled_from([False, False, False, True])):
        _close_a_loop(records["patients"][: draw(st.integers(2, 3))])
    if draw(st.booleans()):
        # Old records of Cliniko have integers as ids.
        for record in (record for found in records.values() for record in found if len(record["id"]) <= 2):
            record["id"] = int(record["id"])
    contacts = drawing.contacts()
    if bad_records:
        drawing.break_some(records)
    return Account(records, contacts, as_of)


class _Drawing:
    """Generator of an account from few names, addresses, ids and instants, so that they collide."""

    def __init__(self, draw: st.DrawFn, instants: list[str]) -> None:
        self.draw = draw
        self.instants = instants
        self.own_ids = self.unique_ids(7)
        absent_id = draw(_IDS.filter(lambda record_id: record_id not in self.own_ids))
        self.patient_ids = [*self.own_ids * 3, absent_id]
        self.booking_ids = self.unique_ids(14)
        people = draw(st.lists(st.sampled_from(_PEOPLE), min_size=1, max_size=2))
        self.names = [*(spelling for spellings in people for spelling in spellings * 2), *_BLANK_NAMES]
        mailboxes = draw(st.lists(st.sampled_from(_MAILBOXES), min_size=1, max_size=2))
        self.emails = [*(spelling for spellings in mailboxes for spelling in spellings * 2), *_BLANK_EMAILS]

    def one_of(self, choices: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(choices))

    def unique_ids(self, max_size: int) -> list[str]:
        # The size is drawn first, so that large sizes are as likely as small sizes.
        size = self.one_of(range(max_size + 1))
        return self.draw(st.lists(_IDS, unique=True, min_size=size, max_size=size))

    def records(self) -> dict[str, list[WireRecord]]:
        """Draw the records. Individual and group appointments share a pool of ids, so that some ids are equal."""
        kinds = {booking: self.one_of(["individual", "individual", "group", "both"]) for booking in self.booking_ids}
        return {
            "patients": [self.patient(record_id) for record_id in self.own_ids],
            "individual_appointments": [
                self.individual_appointment(booking) for booking, kind in kinds.items() if kind != "group"
            ],
            "group_appointments": [
                group_appointment(booking, self.one_of(self.instants), **self.booked("group_appointments"))
                for booking, kind in kinds.items()
                if kind != "individual"
            ],
            "attendees": [self.attendee(record_id) for record_id in self.unique_ids(12)],
            "appointment_types": [
                appointment_type(type_id, self.one_of(_LABELS), **self.times("appointment_types"))
                for type_id in _TYPE_IDS
                if self.one_of([False, True])
            ],
            "practitioners": [
                self.practitioner(record_id) for record_id in _PRACTITIONER_IDS if self.one_of([False, True])
            ],
        }

    def patient(self, record_id: str) -> WireRecord:
        # Links among few patients make chains, self-merges, merges into an absent id, and sometimes a loop.
        links = [link("patients", patient_id) for patient_id in dict.fromkeys(self.patient_ids)]
        merged = self.one_of(_NO_LINKS + [None] * 2 * len(links) + links)
        changes = {"merged_with_patient": merged, **self.times("patients")}
        return patient(record_id, *self.one_of(self.names), self.one_of(self.emails), **changes)

    def individual_appointment(self, record_id: str) -> WireRecord:
        changes = {
            **self.booked("individual_appointments"),
            "patient": self.link_or_none("patients", self.patient_ids),
            "did_not_arrive": self.one_of([False, True, None, ""]),
        }
        return individual_appointment(record_id, None, self.one_of(self.instants), **changes)

    def attendee(self, record_id: str) -> WireRecord:
        changes = {
            **self.times("attendees"),
            "booking": self.link_or_none("bookings", [*self.booking_ids, _UNKNOWN_BOOKING_ID]),
            "patient": self.link_or_none("patients", self.patient_ids),
            "arrived": self.one_of([None, False, True, ""]),
        }
        return attendee(record_id, None, None, **changes)

    def practitioner(self, record_id: str) -> WireRecord:
        names = {field: self.one_of(_LABELS) for field in ("display_name", "label", "first_name", "last_name")}
        return practitioner(record_id, **names, **self.times("practitioners"))

    def booked(self, resource: str) -> WireRecord:
        return {
            "ends_at": self.one_of([None, "", *self.instants]),
            "appointment_type": self.link_or_none("appointment_types", _TYPE_IDS),
            "practitioner": self.link_or_none("practitioners", _PRACTITIONER_IDS),
            **self.times(resource),
        }

    def times(self, resource: str) -> WireRecord:
        """Draw the instants of a record.

        Most ends are null or empty, and sometimes one or all ends are set. Records are created within a few seconds.
        """
        fields = _ENDS.get(resource, [])
        nulls: list[WireRecord] = [dict.fromkeys(fields), dict.fromkeys(fields, "")]
        one_set = [null | {field: _ENDED} for null in nulls for field in fields]
        ends = self.one_of([*nulls * (6 * len(fields) or 1), *one_set, dict.fromkeys(fields, _ENDED)])
        created, updated = sorted(self.draw(st.tuples(st.integers(0, 3), st.integers(0, 3))))
        return ends | {"created_at": f"2025-06-01T08:00:0{created}Z", "updated_at": f"2025-06-01T08:00:0{updated}Z"}

    def link_or_none(self, resource: str, ids: Sequence[str]) -> Any:
        """Draw a link to one of the ids or, less often, any form of a missing link."""
        return self.one_of([link(resource, record_id) for record_id in ids] * 4 + _NO_LINKS)

    def contacts(self) -> list[ContactRow]:
        return [
            contact(number, self.one_of([ORGANIZATION] * 4 + [OTHER_ORGANIZATION]), **self.columns())
            for number in range(1, self.draw(st.integers(0, 9)) + 1)
        ]

    def columns(self) -> dict[str, str | None]:
        """Draw columns that PostgreSQL can store. Half of the contacts have a patient id."""
        first_name, last_name = self.one_of(self.names)
        name: dict[str, str | None] = {"name": self.one_of([None, "", " \u00a0"])}
        name |= {"first_name": first_name, "last_name": last_name}
        if self.one_of([False, True]):
            name = {"name": f"{first_name or ''} {last_name or ''}", "first_name": "Some", "last_name": "Other"}
        patient_id = self.one_of([None, "", " "])
        if self.one_of([False, True]):
            patient_id = self.one_of(_REFERENCES).format(self.one_of(self.patient_ids))
        columns = {"cliniko_patient_id": patient_id, "email": self.one_of(self.emails), **name}
        return {
            column: value and re.sub("[\ud800-\udfff]", "\ufffd", value.replace("\0", ""))
            for column, value in columns.items()
        }

    def break_some(self, records: Mapping[str, list[WireRecord]]) -> None:
        """Make one field unreadable in each of up to four records."""
        places = [(resource, record) for resource, found in records.items() for record in found]
        chosen = self.draw(st.lists(st.integers(0, len(places) - 1), unique=True, max_size=4)) if places else []
        for resource, record in (places[index] for index in chosen):
            appointment = ["starts_at", "ends_at"] if resource.endswith("_appointments") else []
            instants = ["created_at", "updated_at", *appointment, *_ENDS.get(resource, [])]
            missing = [(field, value) for field in ["id", *instants[:2], *appointment[:1]] for value in (None, "")]
            unreadable = [(field, value) for field in instants for value in _UNREADABLE]
            field, value = self.one_of(missing + unreadable)
            record[field] = value
            if value is None and self.one_of([False, True]):
                del record[field]


def _instants(as_of: datetime, activity_window_days: int) -> list[str]:
    """Return instants at both boundaries of the window, just beside them, and at the ends of the calendar."""
    window = timedelta(days=activity_window_days)
    steps = [timedelta(0), timedelta(seconds=1), timedelta(microseconds=500_000), timedelta(microseconds=1)]
    boundaries = (as_of, as_of - window)
    instants = [boundary + sign * step for boundary in boundaries for step in steps for sign in (1, -1)]
    instants += [as_of - window / 2, as_of - window / 3, as_of - window / 4, as_of + window / 2] * 4
    instants += [as_of - 10 * window, as_of + 10 * window]
    texts = [instant.replace(tzinfo=None).isoformat() for instant in instants]
    rendered = [f"{text.rstrip('0') if '.' in text else text}Z" for text in texts]
    return [*rendered, "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"]


def _close_a_loop(patients: Sequence[WireRecord]) -> None:
    """Merge every patient into the next, and the last into the first. Random draws rarely make such a loop."""
    for merged, target in zip(patients, [*patients[1:], *patients[:1]], strict=True):
        merged["merged_with_patient"] = link("patients", target["id"])
