"""The demo's three organizations. Their data is completely invented.

The same anchor gives the same data, and every time is relative to the anchor. The data is valid by the published schema
except for `empty_strings_for_nulls`, which imitates the real service and can be switched off. Some texts contain NUL
characters, which are valid in JSON but refused by PostgreSQL. Tests make accounts with more unusual records themselves
(`Account.from_records`).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import count, pairwise
from typing import Any

from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.accounts.clinic import Clinic, ClinicPatient, Outcome
from cliniko_pipeline.sandbox.accounts.contacts import ContactBook
from cliniko_pipeline.sandbox.accounts.people import Person, invent_person
from cliniko_pipeline.sandbox.accounts.records import Record, Site, instant

SURF_REHAB_KEY = "MS0tdGhpcy1pcy1ub3QtYS1zZWNyZXQtc3VyZi1yZWhhYg-au4"
HARBOUR_PILATES_KEY = "MS0tdGhpcy1pcy1ub3QtYS1zZWNyZXQtaGFyYm91cg-uk2"
OLD_MILL_PHYSIO_KEY = "MS0tdGhpcy1pcy1ub3QtYS1zZWNyZXQtb2xkLW1pbGw"
"""The key of an old account in au1, without a shard suffix. All three keys are invented."""

SURF_REHAB_PATIENTS = 631
_ACTIVE_SHARE = 0.40


@dataclass(frozen=True, slots=True)
class DemoOrganization:
    """An organization of the operator, its Cliniko account, and its `public.contacts`.

    Each contact is a dict of id (a UUID as text), organization_id, cliniko_patient_id, name, first_name,
    last_name, email and phone.
    """

    id: str
    name: str
    account: Account
    contacts: list[dict[str, Any]]


def demo_organizations(anchor: datetime, *, empty_strings_for_nulls: bool = True) -> list[DemoOrganization]:
    """Build the three organizations as they are at `anchor` (aware, UTC).

    Fractions of a second are dropped. With `empty_strings_for_nulls`, some records have "" in place of null, which the
    published schema does not allow.
    """
    now = anchor.replace(microsecond=0)
    return [
        _surf_rehab(now, empty_strings=empty_strings_for_nulls),
        _harbour_pilates(now, empty_strings=empty_strings_for_nulls),
        _old_mill_physio(now, empty_strings=empty_strings_for_nulls),
    ]


def _surf_rehab(now: datetime, *, empty_strings: bool) -> DemoOrganization:
    """Build a clinic with three years of individual appointments, and one weekly class."""
    dice = random.Random("surf-rehab")  # noqa: S311 - data for a demo, no secret
    # The ids grow from 18 to 19 digits, so that their order as text differs from their order as numbers.
    clinic = Clinic("au", now, dice, _large_ids(999_999_999_999_760_000, 37))
    business = clinic.add_business("Surf Rehab Torquay")
    staff = [clinic.add_practitioner(invent_person(dice, 80_000 + n, "au")) for n in range(4)]
    kinds = [clinic.add_appointment_type("Initial consultation", 45)]
    kinds += [clinic.add_appointment_type("Standard consultation", 30)]
    class_kind = clinic.add_appointment_type("Knee rehabilitation class", 45, 8)
    for number in range(SURF_REHAB_PATIENTS - 8):
        _treat(clinic, number, [Site(business, practitioner, kinds[1]) for practitioner in staff])
    site = Site(business, staff[1], kinds[0])
    _unusual_names(clinic, site)
    _families_and_namesakes(clinic, site)
    _weekly_classes(clinic, Site(business, staff[0], class_kind), weeks=30, size=6)
    _archive_and_delete(clinic, archived=14, deleted=5)
    merged = _merge_patients(clinic)
    clinic.block(Site(business, staff[0], kinds[0]), _slot(now, 3, 4))
    _bulk_update(clinic, "patients", share=0.35, days_ago=400)
    _bulk_update(clinic, "individual_appointments", share=0.12, days_ago=380)
    contacts = _contacts(clinic, "surf-rehab", merged, strangers=25)
    return _organization(clinic, "surf-rehab", "Surf Rehab", ("au4", SURF_REHAB_KEY), contacts, empty_strings)


def _harbour_pilates(now: datetime, *, empty_strings: bool) -> DemoOrganization:
    """Build a studio. Its patients book places in classes, cancel them, and book again."""
    dice = random.Random("harbour-pilates")  # noqa: S311 - data for a demo, no secret
    clinic = Clinic("uk", now, dice, _large_ids(1_204_000_000_000_000_000, 1_048_576))
    business = clinic.add_business("Harbour Pilates")
    staff = [clinic.add_practitioner(invent_person(dice, 81_000 + n, "uk")) for n in range(3)]
    private = clinic.add_appointment_type("Private session", 55)
    classes = [clinic.add_appointment_type(f"{name} class", 50, 10) for name in ("Mat", "Reformer")]
    for number in range(110):
        person = invent_person(dice, number, "uk", with_email=dice.random() > 0.1)
        patient = clinic.add_patient(person, now - timedelta(days=dice.randint(120, 1000)))
        if dice.random() < 0.15:
            clinic.book(patient, Site(business, staff[2], private), _slot(now, -dice.randint(1, 300), 9), Outcome.KEPT)
    for site in (Site(business, staff[0], classes[0]), Site(business, staff[1], classes[1])):
        _weekly_classes(clinic, site, weeks=75, size=9)
        _weekly_classes(clinic, site, weeks=75, size=8)
    _change_minds(clinic)
    _archive_classes(clinic)
    _archive_and_delete(clinic, archived=6, deleted=2)
    merged = _merge_patients(clinic)
    _bulk_update(clinic, "attendees", share=0.1, days_ago=90)
    contacts = _contacts(clinic, "harbour-pilates", merged, strangers=8)
    shard_and_key = ("uk2", HARBOUR_PILATES_KEY)
    return _organization(clinic, "harbour-pilates", "Harbour Pilates", shard_and_key, contacts, empty_strings)


def _old_mill_physio(now: datetime, *, empty_strings: bool) -> DemoOrganization:
    """Build a small practice with an old account. Ids are short, and counted per resource."""
    dice = random.Random("old-mill-physio")  # noqa: S311 - data for a demo, no secret
    clinic = Clinic("au", now, dice, _short_ids())
    site = Site(
        clinic.add_business("Old Mill Physio"),
        clinic.add_practitioner(invent_person(dice, 82_000, "au")),
        clinic.add_appointment_type("Consultation", 30),
    )
    for number in range(38):
        _treat(clinic, number, [site])
    _families_and_namesakes(clinic, site)
    _archive_and_delete(clinic, archived=3, deleted=1)
    merged = _merge_patients(clinic)
    contacts = _contacts(clinic, "old-mill-physio", merged, strangers=3)
    shard_and_key = ("au1", OLD_MILL_PHYSIO_KEY)
    return _organization(clinic, "old-mill-physio", "Old Mill Physio", shard_and_key, contacts, empty_strings)


def _organization(
    clinic: Clinic,
    organization_id: str,
    name: str,
    shard_and_key: tuple[str, str],
    contacts: list[dict[str, Any]],
    empty_strings: bool,
) -> DemoOrganization:
    if empty_strings:
        _blank_nulls(clinic)
    return DemoOrganization(organization_id, name, clinic.account(organization_id, *shard_and_key), contacts)


# Individual care.


def _treat(clinic: Clinic, number: int, sites: list[Site]) -> None:
    """Add a patient with a course of treatment that is under way, over, or about to begin."""
    dice = clinic.dice
    person = invent_person(dice, number, clinic.country, with_email=dice.random() > 0.12)
    days = _visit_days(dice)
    first = min(days, default=-dice.randint(1, 900))
    # The patient is registered before the first booking can have been made, and never after now.
    patient = clinic.add_patient(person, clinic.now + timedelta(days=min(first, 0) - 23, seconds=-number))
    site = dice.choice(sites)
    for position, day in enumerate(sorted(days)):
        certain = day == max((visit_day for visit_day in days if visit_day < 0), default=0)
        outcome = Outcome.KEPT if certain else _outcome(dice)
        clinic.book(patient, site, _slot(clinic.now, day, dice.randrange(20) + position % 2), outcome)


def _visit_days(dice: random.Random) -> list[int]:
    """Return the days of a patient's visits, counted from today. Negative days are in the past."""
    draw = dice.random()
    if draw < 0.04:
        return []
    if draw < 0.08:
        return [dice.randint(1, 30)]
    if draw < 0.08 + _ACTIVE_SHARE:
        upcoming = [dice.randint(1, 45) for _ in range(dice.choice((0, 0, 1, 2, 3)))]
        return upcoming + _course(dice, last=-dice.randint(1, 57), longest=26)
    return _course(dice, last=-dice.randint(63, 1000), longest=12)


def _course(dice: random.Random, last: int, longest: int) -> list[int]:
    days, day = [last], last
    for _ in range(dice.randint(0, longest)):
        day -= dice.randint(2, 12 if dice.random() < 0.9 else 120)
        if day > -1095:
            days.append(day)
    return days


def _outcome(dice: random.Random) -> Outcome:
    outcomes = (Outcome.KEPT, Outcome.CANCELLED, Outcome.NO_SHOW, Outcome.ARCHIVED, Outcome.DELETED)
    return dice.choices(outcomes, weights=(86, 8, 4, 1, 1))[0]


def _slot(now: datetime, day: int, half_hour: int) -> datetime:
    """Return a full or half hour of the day that is `day` days after today.

    Half hours are counted from 21:00 UTC of the day before. Unless `day` is positive, the result is at least two hours
    before now.
    """
    midnight = now.replace(hour=0, minute=0, second=0)
    moment = midnight + timedelta(days=day, hours=-3, minutes=30 * half_hour)
    return moment if day > 0 or moment < now - timedelta(hours=2) else moment - timedelta(days=1)


# Classes.


def _weekly_classes(clinic: Clinic, site: Site, weeks: int, size: int) -> None:
    """Add a class in `weeks` past weeks and the next four, with mostly the same patients."""
    dice = clinic.dice
    day = dice.randint(1, 6)
    old_enough = instant(clinic.now - timedelta(days=7 * weeks + 40))
    candidates = [patient for patient in clinic.patients if str(patient.record["created_at"]) < old_enough]
    if len(candidates) < size:
        candidates = clinic.patients
    regulars = dice.sample(candidates, size)
    for week in range(-weeks, 4):
        if dice.random() < 0.3:
            regulars[dice.randrange(size)] = dice.choice(candidates)
        present = [
            patient_id for patient_id in dict.fromkeys(regular.id for regular in regulars) if dice.random() < 0.85
        ]
        patients = [patient for patient in clinic.patients if patient.id in present]
        clinic.open_class(site, _slot(clinic.now, 7 * week + day, 20), patients)


def _change_minds(clinic: Clinic) -> None:
    """Cancel some places in classes, and let some of these patients book again, even twice."""
    dice = clinic.dice
    for group in clinic.records_of("group_appointments"):
        for patient in clinic.patients:
            if patient.id not in group["patient_ids"] or dice.random() > 0.15:
                continue
            attendee = next(place for place in reversed(patient.attendees) if _books(place, group))
            clinic.leave(group, attendee, patient)
            if dice.random() < 0.4:
                clinic.join(group, patient)
            if dice.random() < 0.03:
                clinic.join(group, patient)


def _books(attendee: Record, booking: Record) -> bool:
    return str(attendee["booking"]["links"]["self"]).endswith(f"/{booking['id']}")


def _archive_classes(clinic: Clinic) -> None:
    groups = clinic.records_of("group_appointments")
    for group in groups[5::40]:
        clinic.conclude(group, Outcome.ARCHIVED, clinic.now - timedelta(days=20))
    for group in groups[9::60]:
        clinic.conclude(group, Outcome.DELETED, clinic.now - timedelta(days=12))


# Unusual patients and records.


def _unusual_names(clinic: Clinic, site: Site) -> None:
    """Add two patients whose names are difficult for text handling."""
    names = (("Zoë 🏄", "Müller-Lüdenscheidt"), ("Nguyễn Thị", "Ánh"))
    for number, (first_name, last_name) in enumerate(names):
        person = invent_person(clinic.dice, 70_000 + number, clinic.country)
        patient = _regular(clinic, site, replace(person, first_name=first_name, last_name=last_name))
        patient.record["city"] = "Exam\x00pleton"
        patient.record["notes"] = "First line\nsecond line \x00 third 👩‍⚕️"


def _families_and_namesakes(clinic: Clinic, site: Site) -> None:
    """Add a family with one e-mail address, and three patients without, two of them namesakes."""
    parent = invent_person(clinic.dice, 71_000, clinic.country)
    for first_name in (parent.first_name, "Ruby-May", "Leo-Jack"):
        _regular(clinic, site, replace(parent, first_name=first_name))
    for number in range(2):
        person = invent_person(clinic.dice, 71_100 + number, clinic.country, with_email=False)
        _regular(clinic, site, replace(person, first_name="Alex", last_name="Taylor"))
    _regular(clinic, site, invent_person(clinic.dice, 71_200, clinic.country, with_email=False))


def _regular(clinic: Clinic, site: Site, person: Person) -> ClinicPatient:
    """Add a patient with two recent visits and one future visit."""
    patient = clinic.add_patient(person, clinic.now - timedelta(days=500))
    for day in (-33, -12, 9):
        clinic.book(patient, site, _slot(clinic.now, day, clinic.dice.randrange(20)), Outcome.KEPT)
    return patient


def _archive_and_delete(clinic: Clinic, archived: int, deleted: int) -> None:
    chosen = clinic.dice.sample(clinic.patients[: len(clinic.patients) * 3 // 4], archived + deleted)
    for position, patient in enumerate(chosen):
        outcome = Outcome.ARCHIVED if position < archived else Outcome.DELETED
        clinic.conclude(patient.record, outcome, clinic.now - timedelta(days=10 * position + 1))


def _merge_patients(clinic: Clinic) -> list[ClinicPatient]:
    """Merge two pairs and a chain of three, with most bookings; return the patients merged away."""
    usable = [
        patient for patient in clinic.patients if not patient.record["archived_at"] and not patient.record["deleted_at"]
    ]
    usable = [patient for patient in usable if len(patient.bookings) >= 2 or len(patient.attendees) >= 2]
    first, second, third, fourth, *chain = clinic.dice.sample(usable, 7)
    days_ago = count(9, 13)
    merges = [(first, second), (third, fourth), *pairwise(chain)]
    for gone, kept in merges:
        clinic.merge(gone, kept, clinic.now - timedelta(days=next(days_ago)), left_behind=1)
    return [gone for gone, _ in merges]


def _bulk_update(clinic: Clinic, resource: str, share: float, days_ago: int) -> None:
    """Change many records in the same clock second, as an import or a mass edit does."""
    moment = instant(clinic.now - timedelta(days=days_ago))
    for record in clinic.records_of(resource):
        if str(record["updated_at"]) < moment and clinic.dice.random() < share * 2:
            record["updated_at"] = moment


def _blank_nulls(clinic: Clinic) -> None:
    """Replace null by "" in some records, as the real service does."""
    for resource in ("patients", "individual_appointments", "group_appointments", "attendees"):
        for record in clinic.records_of(resource)[::17]:
            for name in ("archived_at", "deleted_at", "cancelled_at", "merged_at", "email", "telehealth_url"):
                if name in record and record[name] is None:
                    record[name] = ""


# The operator's contacts.


def _contacts(
    clinic: Clinic, organization_id: str, merged: list[ClinicPatient], strangers: int
) -> list[dict[str, Any]]:
    book = ContactBook(organization_id, clinic.dice)
    for patient in clinic.patients:
        if patient in merged:
            # This contact is older than the merge, so it still has the id of the merged patient.
            book.add(patient, patient_id=patient.id)
        elif patient.record["first_name"] != "Alex":
            book.add_as_usual(patient)
    _add_troublesome_contacts(clinic, book)
    book.add_strangers(strangers, clinic.country)
    return book.rows


def _add_troublesome_contacts(clinic: Clinic, book: ContactBook) -> None:
    """Add a contact for two namesakes, duplicates, and a contact with an unknown patient id."""
    namesakes = [patient for patient in clinic.patients if patient.record["first_name"] == "Alex"]
    if namesakes:
        book.add(namesakes[0])
    for row in clinic.dice.sample(book.rows, 4):
        twin = ClinicPatient({}, _person_of(row))
        book.add(twin, email=row["email"], name=row["name"])
    lost = ClinicPatient({}, invent_person(clinic.dice, 72_000, clinic.country))
    book.add(lost, patient_id="7", email=lost.person.email)


def _person_of(row: dict[str, Any]) -> Person:
    return Person(row["first_name"], row["last_name"], row["email"], row["phone"], 1980)


# Ids.


def _large_ids(first: int, step: int) -> Callable[[str], str]:
    numbers = count(first, step)
    return lambda _: str(next(numbers))


def _short_ids() -> Callable[[str], str]:
    numbers: dict[str, count[int]] = {}
    return lambda kind: str(next(numbers.setdefault(kind, count(1))))
