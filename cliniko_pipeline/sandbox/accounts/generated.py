"""Accounts of any size for benchmarks, without the unusual records of `demo`."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from cliniko_pipeline.sandbox.accounts import records
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.accounts.people import invent_person
from cliniko_pipeline.sandbox.accounts.records import Booking, Record, Site, instant

GENERATED_KEY = "MS0tdGhpcy1pcy1ub3QtYS1zZWNyZXQtZ2VuZXJhdGVk-au5"
CLASS_SIZE = 6
_OPENED_DAYS_AGO = 1095
_PLANNED_DAYS = 30
_FIRST_ID = 1_300_000_000_000_000_000
_PRACTITIONERS = 5


@dataclass(frozen=True, slots=True)
class _Visit:
    """One booking, with its patients, times and outcome."""

    number: int
    patients: tuple[int, ...]
    starts: datetime
    booked: datetime
    cancelled: bool
    no_show: bool

    @property
    def is_class(self) -> bool:
        return len(self.patients) > 1


def generated_account(
    patients: int,
    appointments: int,
    seed: int,
    anchor: datetime,
    group_share: float = 0.0,
    *,
    name: str = "generated",
) -> Account:
    """Build an account with this many patients and bookings.

    The bookings span the three years before `anchor` (aware, UTC) and the month after it, with about 3 % in that month.
    The share `group_share` of the bookings (0 to 1) are classes of `CLASS_SIZE` patients. Each place in a class and
    each individual appointment has one attendee. The API key is `GENERATED_KEY`, and the shard is au5. The same
    arguments give the same account.
    """
    now = anchor.replace(microsecond=0)
    opened = instant(now - timedelta(days=_OPENED_DAYS_AGO))
    # The same visits are drawn again for each resource, so that a million visits need not be kept in memory.
    visits = partial(_visits, patients, appointments, seed, now, group_share)
    dice = random.Random(seed)  # noqa: S311 - data for a benchmark, no secret
    individual_kind, class_kind = "1", "2"
    staff = [str(number + 1) for number in range(_PRACTITIONERS)]
    return Account.from_records(
        name,
        "au5",
        GENERATED_KEY,
        {
            "businesses": [records.business("1", "Generated Clinic", "au", opened)],
            "practitioners": [
                records.practitioner(staff_id, invent_person(dice, int(staff_id), "au"), opened) for staff_id in staff
            ],
            "appointment_types": [
                records.appointment_type(individual_kind, "Consultation", 30, 1, opened),
                records.appointment_type(class_kind, "Class", 45, 10, opened),
            ],
            "patients": _patients(patients, dice, now),
            "individual_appointments": (
                _individual_appointment(visit, now) for visit in visits() if not visit.is_class
            ),
            "group_appointments": (_class(visit) for visit in visits() if visit.is_class),
            "attendees": (attendee for visit in visits() for attendee in _attendees(visit, now)),
        },
    )


def _visits(patients: int, appointments: int, seed: int, now: datetime, group_share: float) -> Iterator[_Visit]:
    dice = random.Random(f"visits {seed}")  # noqa: S311 - data for a benchmark, no secret
    classes = round(appointments * group_share)
    span = (_OPENED_DAYS_AGO - 30 + _PLANNED_DAYS) * 48
    first = now - timedelta(days=_OPENED_DAYS_AGO - 30)
    for number in range(appointments):
        starts = first + timedelta(minutes=30 * dice.randrange(span))
        size = min(CLASS_SIZE, patients) if number < classes else 1
        chance = dice.random()
        yield _Visit(
            number=number,
            patients=tuple(dice.sample(range(patients), size)) if size > 1 else (dice.randrange(patients),),
            starts=starts,
            # Nothing was booked in the last hour, so that the account looks as if nobody were using it.
            booked=min(starts, now - timedelta(hours=1)) - timedelta(seconds=dice.randrange(86_400, 20 * 86_400)),
            cancelled=size == 1 and chance < 0.08,
            no_show=size == 1 and 0.08 <= chance < 0.12 and starts <= now,
        )


def _patients(number: int, dice: random.Random, now: datetime) -> Iterator[Record]:
    for count in range(number):
        created = instant(now - timedelta(days=_OPENED_DAYS_AGO, seconds=dice.randrange(86_400)))
        person = invent_person(dice, count, "au", with_email=count % 8 != 0)
        yield records.patient(_patient_id(count), person, "au", created, created)


def _individual_appointment(visit: _Visit, now: datetime) -> Record:
    patient = visit.patients[0]
    record = records.individual_appointment(_booking(visit, 30), _site(visit), _patient_id(patient), "Generated")
    _conclude(record, visit, now, "patient_arrived")
    record["did_not_arrive"] = visit.no_show
    return record


def _class(visit: _Visit) -> Record:
    patient_ids = [_patient_id(patient) for patient in visit.patients]
    return records.group_appointment(_booking(visit, 45), _site(visit), patient_ids, 10)


def _attendees(visit: _Visit, now: datetime) -> Iterator[Record]:
    booked = instant(visit.booked)
    for place, patient in enumerate(visit.patients):
        record_id = str(3 * _FIRST_ID + visit.number * 100 + place)
        record = records.attendee(record_id, _booking_id(visit), _patient_id(patient), booked, booked)
        _conclude(record, visit, now, "arrived")
        yield record


def _conclude(record: Record, visit: _Visit, now: datetime, arrived: str) -> None:
    if visit.cancelled:
        record["cancelled_at"] = record["updated_at"]
    elif visit.starts <= now:
        record[arrived] = not visit.no_show
        record["updated_at"] = instant(visit.starts)


def _booking(visit: _Visit, minutes: int) -> Booking:
    booked = instant(visit.booked)
    ends_at = instant(visit.starts + timedelta(minutes=minutes))
    return Booking(_booking_id(visit), instant(visit.starts), ends_at, booked, booked)


def _site(visit: _Visit) -> Site:
    return Site("1", str(1 + visit.number % _PRACTITIONERS), "2" if visit.is_class else "1")


def _booking_id(visit: _Visit) -> str:
    return str(2 * _FIRST_ID + visit.number)


def _patient_id(number: int) -> str:
    return str(_FIRST_ID + number)
