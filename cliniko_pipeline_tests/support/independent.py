"""An independent computation of the numbers, with which tests compare the pipeline's results.

It is plain Python over the wire records of an account, and needs no database and no HTTP. It shares no code with the
pipeline, because a shared error would make both results wrong in the same way. It follows this definition of the
numbers:

**Wire records.** An id is a string of 1 to 20 digits, or an integer. Ids are compared as numbers. ``""`` means null in
every field. First, NUL characters are removed from all texts, and each lone surrogate becomes U+FFFD, because
PostgreSQL can store neither. Instants are ISO 8601 with ``Z`` or an offset, and with at most six digits of fraction.
A record is rejected if it has no id, ``created_at`` or ``updated_at``, or if any of its instants is unreadable. An
appointment is also rejected without ``starts_at``. Rejected records are ignored. A linked id is the last segment of the
link's path. A missing or null link means that there is no linked record. If several records have the same id, the last
record is used.

**The person.** A patient is merged if it has a ``merged_with_patient`` link, even if ``merged_at`` is null. The person
of a merged patient is the patient at the end of its chain of merges. If that patient has no record, the person is
not active and not mapped, and no contact matches the person. The person of a loop, and of all chains that lead into
the loop, is the lowest id in the loop. A person's names and e-mail address, and whether the person is archived or
deleted, come from the person's own patient record.

**Attendances.** An attendance is an individual appointment, or a person's place in a group appointment. A person with
several attendees in a group has one attendance, which counts if any of these attendees counts. An individual
appointment counts unless it was cancelled, archived or deleted. An attendee counts unless it was cancelled, archived
or deleted, or its group appointment was archived or deleted. Attendees are ignored unless their booking is a known
group appointment. Appointments without a patient, or whose person has no record, are ignored.

An individual appointment is a no-show if its ``did_not_arrive`` is true. A group attendance is a no-show if the group
has started and ``arrived`` is false, not null, for all counting attendees of the person. With ``count_no_shows=False``,
no-shows do not count.

**Details.** Attendances with equal ``starts_at`` are ordered by id, and then individual before group appointments.
Instants are written in UTC with the fewest possible digits of fraction. The appointment type is the unchanged name of
its record, even if it is archived, or null if the name is blank. The practitioner is the first name that is not blank,
without surrounding white space, of ``display_name``, ``label`` and ``first_name last_name``.

**Names and e-mail addresses.** The key of a name is the name in NFKC, case-folded, with collapsed white space. The key
of an e-mail address is the address without surrounding white space, case-folded. A blank key matches nothing. White
space is defined by ``str.split`` and ``str.strip``. The name of a contact is ``name``, or its first and last name if
``name`` is blank.

**Contact mapping.** ``contacts.cliniko_patient_id`` is compared with patient ids as text, without surrounding white
space. If it is the id of a patient whose person has a record, the contact takes no part in the passes by e-mail and by
name. Contacts with ``deleted_at`` or a true ``is_deleted`` are ignored. Archived and deleted people take part only in
the first pass. An ambiguous person's ``candidate_count`` is the number of contacts in its group that were still free
at that time. The remaining contacts of an ambiguous e-mail group can still match other people by name.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar

Records = Mapping[str, Sequence[Mapping[str, Any]]]
"""All records of the account in Cliniko, as JSON, by the name of their resource ("patients", ...)."""

Contact = Mapping[str, Any]
"""A row of public.contacts."""

Kind = Literal["individual", "group"]
Status = Literal["matched", "ambiguous", "unmatched"]
Method = Literal["cliniko_patient_id", "email", "name"]


@dataclass(frozen=True)
class ExpectedMapping:
    """The expected mapping of a person."""

    status: Status
    contact_id: Any = None
    method: Method | None = None
    candidate_count: int | None = None


UNMATCHED = ExpectedMapping("unmatched")


def expected_contact_mapping(
    records: Records, contacts: Iterable[Contact], organization_id: str
) -> dict[str, ExpectedMapping]:
    """Return the mapping by person id, for every person that has a patient record.

    ``contacts`` may include contacts of other organizations, which are ignored.
    """
    patients = _read_all(records, "patients", _read_patient)
    person_of, _ = _follow_merges(patients)
    people = {person: patients[person] for person in person_of.values() if person in patients}
    own_contacts = [
        _read_contact(row)
        for row in contacts
        if row["organization_id"] == organization_id and row.get("deleted_at") is None and not row.get("is_deleted")
    ]

    named = [contact for contact in own_contacts if person_of.get(contact.cliniko_patient_id) in people]
    free = [contact for contact in own_contacts if person_of.get(contact.cliniko_patient_id) not in people]
    settled = _match_by_patient_id(people, person_of, named)

    open_people = [patient for person, patient in people.items() if person not in settled and not patient.ended]
    settled |= _match_by_email(open_people, free)

    taken = {mapping.contact_id for mapping in settled.values()}
    free = [contact for contact in free if contact.id not in taken]
    open_people = [patient for patient in open_people if patient.id not in settled]
    settled |= _match_by_name(open_people, free)

    return {person: settled.get(person, UNMATCHED) for person in people}


def expected_active_patients(
    records: Records,
    contacts: Iterable[Contact],
    organization_id: str,
    as_of: datetime,
    *,
    activity_window_days: int = 60,
    count_no_shows: bool = True,
) -> dict[Any, dict[str, Any]]:
    """Return the rows of public.active_patients by contact id, without ``id``, ``created_at`` and ``updated_at``.

    Timestamps are naive and in UTC, like the columns. The two JSON columns are lists of dicts. Raise ValueError if
    ``as_of`` has no time zone.
    """
    as_of = _utc(as_of)
    search_from = as_of - timedelta(days=activity_window_days)
    patients = _read_all(records, "patients", _read_patient)
    attendances = _attendances_by_person(records, patients, as_of, count_no_shows=count_no_shows)
    rows: dict[Any, dict[str, Any]] = {}
    for person, mapping in expected_contact_mapping(records, contacts, organization_id).items():
        patient = patients[person]
        recent = [a for a in attendances[person] if search_from <= a.starts_at <= as_of]
        if mapping.status != "matched" or not recent or patient.ended:
            continue
        upcoming = [a for a in attendances[person] if a.starts_at > as_of]
        rows[mapping.contact_id] = {
            "contact_id": mapping.contact_id,
            "recent_appointment_count": len(recent),
            "upcoming_appointment_count": len(upcoming),
            "total_appointment_count": len(attendances[person]),
            "last_appointment_date": _naive(max(a.starts_at for a in recent)),
            "recent_appointments": [_details(a) for a in _latest_first(recent)],
            "upcoming_appointments": [_details(a) for a in _soonest_first(upcoming)],
            "search_date_from": _naive(search_from),
            "search_date_to": _naive(as_of),
            "organization_id": organization_id,
        }
    return rows


def merge_loops(records: Records) -> frozenset[str]:
    """Return the lowest id of every loop of merges, which is the person of all patients in the loop."""
    _, loops = _follow_merges(_read_all(records, "patients", _read_patient))
    return frozenset(loops)


class _RejectedError(Exception):
    """The record lacks a required field, or has an unreadable field."""


@dataclass(frozen=True)
class _Patient:
    id: str
    first_name: str
    last_name: str
    email: str
    ended: bool
    merged_into: str | None

    @property
    def name_key(self) -> str:
        return _name_key(f"{self.first_name} {self.last_name}")

    @property
    def email_key(self) -> str:
        return _email_key(self.email)


@dataclass(frozen=True)
class _Appointment:
    """An individual or a group appointment. Groups do not use ``patient_id`` and ``did_not_arrive``."""

    id: str
    patient_id: str | None
    appointment_type_id: str | None
    practitioner_id: str | None
    starts_at: datetime
    ends_at: datetime | None
    ended: bool
    did_not_arrive: bool


@dataclass(frozen=True)
class _Attendee:
    id: str
    booking_id: str | None
    patient_id: str | None
    arrived: bool | None
    ended: bool


@dataclass(frozen=True)
class _Named:
    """An appointment type or a practitioner, with its shown name."""

    id: str
    name: str | None


_Record = TypeVar("_Record", _Patient, _Appointment, _Attendee, _Named)


def _read_all(records: Records, resource: str, read: Callable[[Mapping[str, Any]], _Record]) -> dict[str, _Record]:
    readable: dict[str, _Record] = {}
    for wire in records.get(resource, ()):
        try:
            record = read(wire)
        except _RejectedError:
            continue
        readable[record.id] = record
    return readable


def _read_patient(wire: Mapping[str, Any]) -> _Patient:
    _require_own_facts(wire)
    _instant(wire, "merged_at")
    return _Patient(
        id=_own_id(wire),
        first_name=_text(wire, "first_name"),
        last_name=_text(wire, "last_name"),
        email=_text(wire, "email"),
        ended=_has_any(wire, "archived_at", "deleted_at"),
        merged_into=_linked_id(wire, "merged_with_patient"),
    )


def _read_individual_appointment(wire: Mapping[str, Any]) -> _Appointment:
    _require_own_facts(wire)
    return _Appointment(
        id=_own_id(wire),
        patient_id=_linked_id(wire, "patient"),
        appointment_type_id=_linked_id(wire, "appointment_type"),
        practitioner_id=_linked_id(wire, "practitioner"),
        starts_at=_required_instant(wire, "starts_at"),
        ends_at=_instant(wire, "ends_at"),
        ended=_has_any(wire, "cancelled_at", "archived_at", "deleted_at"),
        did_not_arrive=wire.get("did_not_arrive") is True,
    )


def _read_group_appointment(wire: Mapping[str, Any]) -> _Appointment:
    return _read_individual_appointment({**wire, "cancelled_at": None})


def _read_attendee(wire: Mapping[str, Any]) -> _Attendee:
    _require_own_facts(wire)
    arrived = wire.get("arrived")
    return _Attendee(
        id=_own_id(wire),
        booking_id=_linked_id(wire, "booking"),
        patient_id=_linked_id(wire, "patient"),
        arrived=arrived if isinstance(arrived, bool) else None,
        ended=_has_any(wire, "cancelled_at", "archived_at", "deleted_at"),
    )


def _read_appointment_type(wire: Mapping[str, Any]) -> _Named:
    _require_own_facts(wire)
    name = _text(wire, "name")
    return _Named(_own_id(wire), name if name.strip() else None)


def _read_practitioner(wire: Mapping[str, Any]) -> _Named:
    _require_own_facts(wire)
    full_name = f"{_text(wire, 'first_name')} {_text(wire, 'last_name')}"
    choices = [_text(wire, "display_name"), _text(wire, "label"), full_name]
    return _Named(_own_id(wire), next((choice.strip() for choice in choices if choice.strip()), None))


def _require_own_facts(wire: Mapping[str, Any]) -> None:
    _own_id(wire)
    _required_instant(wire, "created_at")
    _required_instant(wire, "updated_at")


def _own_id(wire: Mapping[str, Any]) -> str:
    own_id = _canonical_id(wire.get("id"))
    if own_id is None:
        raise _RejectedError
    return own_id


def _canonical_id(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,20}", _clean(value)):
        return str(int(_clean(value)))
    return None


def _linked_id(wire: Mapping[str, Any], name: str) -> str | None:
    """Return the id at the end of ``{name: {"links": {"self": url}}}``."""
    link = wire.get(name)
    links = link.get("links") if isinstance(link, dict) else None
    url = links.get("self") if isinstance(links, dict) else None
    if not isinstance(url, str):
        return None
    path = _clean(url).split("?")[0]
    return _canonical_id(path.rsplit("/", 1)[-1])


def _has_any(wire: Mapping[str, Any], *fields: str) -> bool:
    """Return whether any of the instants is set. All the instants must be readable."""
    return len([field for field in fields if _instant(wire, field) is not None]) > 0


def _required_instant(wire: Mapping[str, Any], field: str) -> datetime:
    instant = _instant(wire, field)
    if instant is None:
        raise _RejectedError
    return instant


_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII)


def _instant(wire: Mapping[str, Any], field: str) -> datetime | None:
    value = wire.get(field)
    if value is None:
        return None
    if not isinstance(value, str):
        raise _RejectedError
    text = _clean(value)
    if text == "":
        return None
    if not _INSTANT.fullmatch(text):
        raise _RejectedError
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _RejectedError from None


def _text(wire: Mapping[str, Any], field: str) -> str:
    value = wire.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _RejectedError
    return _clean(value)


def _clean(text: str) -> str:
    """Return the text without characters that PostgreSQL cannot store."""
    text = text.replace("\0", "")
    return text if text.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", text)


def _follow_merges(patients: Mapping[str, _Patient]) -> tuple[dict[str, str], set[str]]:
    """Return person ids by patient id, and the persons of loops. Missing ends of chains are included."""
    person_of: dict[str, str] = {}
    loops: set[str] = set()
    for start in patients:
        chain: dict[str, None] = {}
        here = start
        while here in patients and here not in person_of:
            if here in chain:
                walked = list(chain)
                lowest = min(walked[walked.index(here) :], key=int)
                loops.add(lowest)
                here = lowest
                break
            merged_into = patients[here].merged_into
            if merged_into is None:
                break
            chain[here] = None
            here = merged_into
        person = person_of.get(here, here)
        for patient_id in [*chain, here]:
            person_of[patient_id] = person
    return person_of, loops


@dataclass(frozen=True)
class _Attendance:
    id: str
    kind: Kind
    starts_at: datetime
    ends_at: datetime | None
    appointment_type: str | None
    practitioner: str | None
    did_not_arrive: bool


def _attendances_by_person(
    records: Records, patients: Mapping[str, _Patient], as_of: datetime, *, count_no_shows: bool
) -> defaultdict[str, list[_Attendance]]:
    """Return all counting attendances by person id, in no particular order."""
    person_of, _ = _follow_merges(patients)
    name_type = _names(_read_all(records, "appointment_types", _read_appointment_type))
    name_practitioner = _names(_read_all(records, "practitioners", _read_practitioner))
    attendances: defaultdict[str, list[_Attendance]] = defaultdict(list)

    def add(person: str, kind: Kind, appointment: _Appointment, *, did_not_arrive: bool) -> None:
        attendance = _Attendance(
            id=appointment.id,
            kind=kind,
            starts_at=appointment.starts_at,
            ends_at=appointment.ends_at,
            appointment_type=name_type.get(appointment.appointment_type_id),
            practitioner=name_practitioner.get(appointment.practitioner_id),
            did_not_arrive=did_not_arrive,
        )
        attendances[person].append(attendance)

    individuals = _read_all(records, "individual_appointments", _read_individual_appointment)
    for appointment in individuals.values():
        person = person_of.get(appointment.patient_id or "")
        if person is None or appointment.ended:
            continue
        if count_no_shows or not appointment.did_not_arrive:
            add(person, "individual", appointment, did_not_arrive=appointment.did_not_arrive)

    groups = _read_all(records, "group_appointments", _read_group_appointment)
    for (group_id, person), attendees in _counting_attendees(records, groups, person_of).items():
        group = groups[group_id]
        no_shows = [a for a in attendees if a.arrived is False and group.starts_at <= as_of]
        if count_no_shows or len(no_shows) < len(attendees):
            add(person, "group", group, did_not_arrive=len(no_shows) == len(attendees))

    return attendances


def _counting_attendees(
    records: Records, groups: Mapping[str, _Appointment], person_of: Mapping[str, str]
) -> dict[tuple[str, str], list[_Attendee]]:
    """Return the counting attendees by group appointment id and person id. No list is empty."""
    counting: defaultdict[tuple[str, str], list[_Attendee]] = defaultdict(list)
    for attendee in _read_all(records, "attendees", _read_attendee).values():
        group = groups.get(attendee.booking_id or "")
        person = person_of.get(attendee.patient_id or "")
        if group is not None and person is not None and not group.ended and not attendee.ended:
            counting[group.id, person].append(attendee)
    return counting


def _names(named: Mapping[str, _Named]) -> dict[str | None, str | None]:
    return {record.id: record.name for record in named.values()}


@dataclass(frozen=True)
class _Contact:
    id: Any
    cliniko_patient_id: str
    name_key: str
    email_key: str


def _read_contact(row: Contact) -> _Contact:
    name, first_name, last_name, email, patient_id = (
        _clean(row.get(column) or "") for column in ("name", "first_name", "last_name", "email", "cliniko_patient_id")
    )
    return _Contact(
        id=row["id"],
        cliniko_patient_id=patient_id.strip(),
        name_key=_name_key(name) or _name_key(f"{first_name} {last_name}"),
        email_key=_email_key(email),
    )


def _name_key(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _email_key(email: str) -> str:
    return email.strip().casefold()


def _match_by_patient_id(
    people: Mapping[str, _Patient], person_of: Mapping[str, str], named: Sequence[_Contact]
) -> dict[str, ExpectedMapping]:
    groups = _group(named, key=lambda contact: person_of[contact.cliniko_patient_id])
    settled: dict[str, ExpectedMapping] = {}
    for person, contacts in groups.items():
        settled |= _settle_with_names([people[person]], contacts, "cliniko_patient_id")
    return settled


def _match_by_email(people: Sequence[_Patient], free: Sequence[_Contact]) -> dict[str, ExpectedMapping]:
    people_groups = _group(people, key=lambda patient: patient.email_key)
    contact_groups = _group(free, key=lambda contact: contact.email_key)
    settled: dict[str, ExpectedMapping] = {}
    for email in (people_groups.keys() & contact_groups.keys()) - {""}:
        settled |= _settle_with_names(people_groups[email], contact_groups[email], "email")
    return settled


def _match_by_name(people: Sequence[_Patient], free: Sequence[_Contact]) -> dict[str, ExpectedMapping]:
    people_groups = _group(people, key=lambda patient: patient.name_key)
    contact_groups = _group(free, key=lambda contact: contact.name_key)
    settled: dict[str, ExpectedMapping] = {}
    for name in (people_groups.keys() & contact_groups.keys()) - {""}:
        patients, contacts = people_groups[name], contact_groups[name]
        if len(patients) == len(contacts) == 1:
            settled[patients[0].id] = ExpectedMapping("matched", contacts[0].id, "name")
        else:
            settled |= {patient.id: _ambiguous(contacts) for patient in patients}
    return settled


def _settle_with_names(
    patients: Sequence[_Patient], contacts: Sequence[_Contact], method: Method
) -> dict[str, ExpectedMapping]:
    """Settle a group that shares an id or an e-mail address. People without a result go to the next pass."""
    if len(patients) == len(contacts) == 1:
        return {patients[0].id: ExpectedMapping("matched", contacts[0].id, method)}

    patients_by_name = _group(patients, key=lambda patient: patient.name_key)
    contacts_by_name = _group(contacts, key=lambda contact: contact.name_key)
    settled: dict[str, ExpectedMapping] = {}
    for name in (patients_by_name.keys() & contacts_by_name.keys()) - {""}:
        if len(patients_by_name[name]) == len(contacts_by_name[name]) == 1:
            patient, contact = patients_by_name[name][0], contacts_by_name[name][0]
            settled[patient.id] = ExpectedMapping("matched", contact.id, method)

    taken = {mapping.contact_id for mapping in settled.values()}
    still_free = [contact for contact in contacts if contact.id not in taken]
    if still_free:
        left = [patient for patient in patients if patient.id not in settled]
        settled |= {patient.id: _ambiguous(still_free) for patient in left}
    return settled


def _ambiguous(candidates: Sequence[_Contact]) -> ExpectedMapping:
    return ExpectedMapping("ambiguous", candidate_count=len(candidates))


_Item = TypeVar("_Item")
_Key = TypeVar("_Key", bound=Hashable)


def _group(items: Iterable[_Item], key: Callable[[_Item], _Key]) -> dict[_Key, list[_Item]]:
    groups: defaultdict[_Key, list[_Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _soonest_first(attendances: Iterable[_Attendance]) -> list[_Attendance]:
    return sorted(attendances, key=lambda a: (a.starts_at, int(a.id), a.kind == "group"))


def _latest_first(attendances: Iterable[_Attendance]) -> list[_Attendance]:
    # A reversed sort is stable, so ids still ascend where starts_at is equal.
    return sorted(_soonest_first(attendances), key=lambda a: a.starts_at, reverse=True)


def _details(attendance: _Attendance) -> dict[str, Any]:
    return {
        "id": attendance.id,
        "kind": attendance.kind,
        "starts_at": _render(attendance.starts_at),
        "ends_at": None if attendance.ends_at is None else _render(attendance.ends_at),
        "appointment_type": attendance.appointment_type,
        "practitioner": attendance.practitioner,
        "did_not_arrive": attendance.did_not_arrive,
    }


def _render(instant: datetime) -> str:
    text = _naive(instant).isoformat()
    return (text.rstrip("0") if "." in text else text) + "Z"


def _utc(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise ValueError("as_of has no time zone: give an aware datetime")
    return instant.astimezone(UTC)


def _naive(instant: datetime) -> datetime:
    return instant.replace(tzinfo=None)
