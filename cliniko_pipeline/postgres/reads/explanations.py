"""Why a patient is or is not active, and how it was or was not matched, from what is stored of its organization.

Belongs here: reading that, and deciding which rule applied. Does not: the words for it (the command line has them), and
names, e-mail addresses or any other text of a patient: only ids, instants and kinds leave the database.

The numbers are those of `active_patients.sql`, the match is that of `contact_mapping.sql`: the latter is run as it is,
the former is run beside `attendances.sql`, which says of every attendance what the other leaves out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from cliniko_pipeline.postgres.engine import sql
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS
from cliniko_pipeline.postgres.writing.merge import quote

Window = Literal["upcoming", "recent", "earlier", "unknown"]
Method = Literal["cliniko_patient_id", "email", "name"]
AsOfSource = Literal["argument", "active_patients", "last_run", "now"]

PersonState = Literal["current", "archived", "deleted", "no_record"]
"""`no_record`: the chain of merges ends at a patient that was not read."""

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
"""`vanished`: a full sync no longer found it, and took it for deleted."""

PassOutcome = Literal["matched", "ambiguous", "no_candidate", "not_taken"]
PassReason = Literal[
    "only_pair",  # one on either side
    "equal_names",  # of several, the pair with equal names that are unique on both sides
    "several",  # more than one could be meant
    "no_key",  # the person has no e-mail, or no name
    "no_contact",  # no contact carries the id, or has the same e-mail or name
    "none_free",  # there are such contacts, and all are another's
    "not_current",  # archived and deleted people take part in the first pass only
]

Listing = Literal[
    "listed",
    "differs",
    "out_of_date",
    "not_active",
    "unmapped",
    "unmatched",
    "ambiguous",
    "contact_gone",
    "other_instant",
    "not_computed",
]
"""How the person stands in public.active_patients:

`listed`, `not_active`: as it should. `differs`: there, with other contents than would be computed at the row's own
instant. `out_of_date`: there, and would not be computed any more. Not there, though active: `unmapped` (the mapping was
not computed since the patient was read), `unmatched`, `ambiguous`, `contact_gone` (its contact was deleted
or does not count any more),
`other_instant` (at the instant the table was computed by it was not active), `not_computed` (the table is older than
what is stored).
"""


ContactAbsence = Literal["deleted", "soft_deleted", "filtered"]
"""Deleted, deleted softly by the application, or left out by the operator's condition."""


@dataclass(frozen=True)
class Rules:
    """The settings that the numbers depend on."""

    activity_window: timedelta
    count_no_shows: bool

    def window_start(self, as_of: datetime) -> datetime:
        """Where the window that ends at `as_of` begins."""
        try:
            return as_of - self.activity_window
        except OverflowError:  # before the calendar begins
            return datetime.min.replace(tzinfo=UTC)

    def parameters(self, as_of: datetime) -> dict[str, object]:
        """As `active_patients.sql` wants them."""
        return {
            "as_of": as_of,
            "activity_window": self.activity_window,
            "count_no_shows": self.count_no_shows,
        }


@dataclass(frozen=True)
class State:
    """What the organization's stored data are worth.

    Attributes:
        judged_at: the instant public.active_patients was last computed by; None: it is empty.
        last_computed_at: when the last successful run began that computed it.
        last_run_status, last_run_started_at, last_run_error: of the last run of all.
        resources_complete: those of Cliniko's whose last reading ended whole.
        rejected_records: how many records were set aside, for they could not be understood.
        doubtful_deletions: how many records the last full readings missed that are not believed to be deleted.
    """

    now: datetime
    judged_at: datetime | None
    last_computed_at: datetime | None
    last_run_status: str | None
    last_run_started_at: datetime | None
    last_run_error: str | None
    resources_complete: Sequence[str]
    rejected_records: int
    doubtful_deletions: int


@dataclass(frozen=True)
class PatientRecord:
    """A stored patient, without what names it.

    `vanished_at`: when a full sync no longer found it, and took it for deleted.
    """

    id: str
    merged_into_id: str | None
    merged_at: datetime | None
    archived_at: datetime | None
    deleted_at: datetime | None
    vanished_at: datetime | None
    synced_at: datetime


@dataclass(frozen=True)
class Person:
    """Whom the patient asked for stands for.

    Attributes:
        id: the patient at the end of the chain of merges.
        record: its record; None where it was not read.
        chain: the patient asked for, the one it was merged into, and so on, as far as there are records; in a loop each
            once.
        merged: all others that are merged into this person.
        in_loop: whether the chain goes round in a loop, for which its lowest id stands.
    """

    id: str
    record: PatientRecord | None
    chain: tuple[PatientRecord, ...]
    merged: tuple[PatientRecord, ...]
    in_loop: bool

    @property
    def patient_ids(self) -> list[str]:
        """All patients that are this person, its own record first."""
        ids = [each.id for each in (*self.chain, *self.merged)]
        return sorted(ids, key=lambda each: each != self.id)

    @property
    def state(self) -> PersonState:
        """Whether the person can be active at all."""
        if self.record is None:
            return "no_record"
        if self.record.archived_at is not None:
            return "archived"
        return "current" if self.record.deleted_at is None else "deleted"


@dataclass(frozen=True)
class Attendance:
    """An individual appointment, or one attendee of a group.

    Attributes:
        id: the appointment's (the booking's, in a group); None where the attendee has no booking.
        patient_id: under which of the person's ids.
        counts: whether it is counted.
        left_out: why not, and since when where that is an event.
        counted_attendee_id: the attendee by which the same group was counted already.
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
    """The numbers of public.active_patients."""

    recent: int
    upcoming: int
    total: int
    last: datetime | None


@dataclass(frozen=True)
class Mapping:
    """A row of cliniko.contact_mapping."""

    status: Literal["matched", "ambiguous", "unmatched"]
    method: Method | None
    contact_id: UUID | None
    candidate_count: int | None


@dataclass(frozen=True)
class Candidate:
    """A contact that a pass looked at.

    Attributes:
        state: `free`, or why not: it `names_another` person, or was `taken` by one in an earlier pair.
        patient_id: that person; where the contact names the person asked about, the id it does so by.
        equal_name: whether it has the person's name.
    """

    id: UUID
    state: Literal["free", "names_another", "taken"]
    patient_id: str | None
    equal_name: bool


@dataclass(frozen=True)
class Pass:
    """One pass of the mapping: what came of it for the person, from what is stored now.

    `other_patient_ids`: who else shares the key and takes part.
    """

    method: Method
    outcome: PassOutcome
    reason: PassReason
    candidates: tuple[Candidate, ...] = ()
    other_patient_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Match:
    """The stored mapping of the person, and the passes by what is stored now, up to the one that decided.

    `stored`: None where there is none. `now`: what a mapping made now would say; None for a person without a record.
    `contact_absence`: why the stored mapping's contact does not count any more; None where it does.
    """

    stored: Mapping | None
    now: Mapping | None
    passes: tuple[Pass, ...]
    contact_absence: ContactAbsence | None = None


@dataclass(frozen=True)
class ActiveRow:
    """The person's row of public.active_patients, without the appointments themselves.

    `differences`: the columns that would be different if it were computed now, at its own instant.
    """

    id: int
    contact_id: UUID
    recent_appointment_count: int
    upcoming_appointment_count: int
    total_appointment_count: int
    last_appointment_date: datetime | None
    search_date_from: datetime | None
    search_date_to: datetime | None
    updated_at: datetime | None
    differences: tuple[str, ...]


@dataclass(frozen=True)
class UnknownPatient:
    """What is stored of a patient without a record.

    `rejected_because`: why its record was set aside, if it was; `mentions`: how many records name it.
    """

    rejected_because: str | None
    mentions: int


@dataclass(frozen=True)
class Explanation:
    """Everything there is to say about one patient of one organization."""

    patient_id: str
    as_of: datetime
    as_of_source: AsOfSource
    rules: Rules
    state: State
    person: Person
    attendances: tuple[Attendance, ...]
    counts: Counts
    match: Match
    row: ActiveRow | None
    listing: Listing

    @property
    def is_active(self) -> bool:
        """Whether the person is active at `as_of`."""
        return self.person.state == "current" and self.counts.recent >= 1

    @property
    def changed_after(self) -> datetime | None:
        """When a record of the person was last written, if after its row of public.active_patients was computed."""
        if self.row is None or self.row.updated_at is None:
            return None
        last = max(each.synced_at for each in (*self.person.chain, *self.person.merged, *self.attendances))
        return last if last > self.row.updated_at else None


def explain(connection: Connection, patient_id: str, rules: Rules, as_of: datetime | None = None) -> Explanation | None:
    """What is stored of the patient, explained; None where there is no record of it. Only reads, and sees to that.

    `as_of`: the instant to judge by; without one, that of the last computation.
    """
    connection.execute(sa.text("set transaction read only"))
    connection.execute(sa.text(sql("transforms/plan_for_whole_tables")))
    person = _person(connection, patient_id)
    if person is None:
        return None
    state = _state(connection)
    instant, source = _as_of(as_of, state)
    attendances = _attendances(connection, person, rules, instant)
    counts = _counts(attendances)
    match = _match(connection, person)
    row, is_computed = _active_row(connection, match, rules, state)
    is_active = person.state == "current" and counts.recent >= 1
    return Explanation(
        patient_id=patient_id,
        as_of=instant,
        as_of_source=source,
        rules=rules,
        state=state,
        person=person,
        attendances=attendances,
        counts=counts,
        match=match,
        row=row,
        listing=_listed(row, is_computed=is_computed) if row else _unlisted(match, state, is_active, is_computed),
    )


def unknown_patient(connection: Connection, patient_id: str) -> UnknownPatient:
    """What is stored of a patient that `explain` knows nothing of."""
    row = connection.execute(sa.text(sql("explain/unknown_patient")), {"patient_id": patient_id}).mappings().one()
    return UnknownPatient(**row)


def _person(connection: Connection, patient_id: str) -> Person | None:
    rows = connection.execute(sa.text(sql("explain/person")), {"patient_id": patient_id}).mappings().all()
    if not rows:
        return None
    records = {row["id"]: _patient_record(row) for row in rows}
    asked = next(row for row in rows if row["id"] == patient_id)
    chain: dict[str, PatientRecord] = {}
    here: str | None = patient_id
    while here is not None and here in records and here not in chain:
        chain[here] = records[here]
        here = records[here].merged_into_id
    person_id = str(asked["person_id"])
    return Person(
        id=person_id,
        record=records.get(person_id),
        chain=tuple(chain.values()),
        merged=tuple(each for each in records.values() if each.id not in chain and each.id != person_id),
        in_loop=asked["in_loop"],
    )


def _patient_record(row: RowMapping) -> PatientRecord:
    return PatientRecord(
        id=row["id"],
        merged_into_id=row["merged_into_id"],
        merged_at=row["merged_at"],
        archived_at=row["archived_at"],
        deleted_at=row["deleted_at"],
        vanished_at=row["vanished_at"],
        synced_at=row["synced_at"],
    )


def _state(connection: Connection) -> State:
    return State(**connection.execute(sa.text(sql("explain/state"))).mappings().one())


def _as_of(given: datetime | None, state: State) -> tuple[datetime, AsOfSource]:
    if given is not None:
        return given, "argument"
    if state.judged_at is not None:
        return state.judged_at, "active_patients"
    if state.last_computed_at is not None:
        return state.last_computed_at, "last_run"
    return state.now, "now"


# Attendances. -------------------------------------------------------------------------------------------------------


def _attendances(connection: Connection, person: Person, rules: Rules, as_of: datetime) -> tuple[Attendance, ...]:
    rows = connection.execute(
        sa.text(sql("explain/attendances")), {"patient_ids": person.patient_ids, **rules.parameters(as_of)}
    ).mappings()
    return tuple(_attendance(row) for row in rows)


def _attendance(row: RowMapping) -> Attendance:
    return Attendance(
        kind=row["kind"],
        id=row["id"],
        attendee_id=row["attendee_id"],
        patient_id=row["patient_id"],
        starts_at=row["starts_at"],
        appointment_type=row["appointment_type"],
        practitioner=row["practitioner"],
        window=row["window"],
        counts=row["counts"],
        is_no_show=row["is_no_show"],
        left_out=() if row["counts"] else _left_out(row),
        counted_attendee_id=row["counted_attendee_id"],
        synced_at=row["synced_at"],
    )


_EVENTS: tuple[tuple[LeftOut, str], ...] = (
    ("cancelled", "cancelled_at"),
    ("archived", "archived_at"),
    ("deleted", "deleted_at"),
    ("vanished", "vanished_at"),
    ("booking_archived", "booking_archived_at"),
    ("booking_deleted", "booking_deleted_at"),
    ("booking_vanished", "booking_vanished_at"),
)


def _left_out(row: RowMapping) -> tuple[tuple[LeftOut, datetime | None], ...]:
    events: list[tuple[LeftOut, datetime | None]] = [
        (reason, row[column])
        for reason, column in _EVENTS
        if row[column] is not None
        # What vanished counts as deleted from then on; what was deleted before says both.
        and not (reason.endswith("deleted") and row[column] == row[column.replace("deleted", "vanished")])
    ]
    if not row["is_booking_known"]:
        events.append(("booking_unknown", None))
    if events:
        return tuple(events)
    return (("no_show" if row["counted_attendee_id"] is None else "counted_once", None),)


def _counts(attendances: Sequence[Attendance]) -> Counts:
    counted = [each for each in attendances if each.counts]
    return Counts(
        recent=sum(each.window == "recent" for each in counted),
        upcoming=sum(each.window == "upcoming" for each in counted),
        total=len(counted),
        last=max((each.starts_at for each in counted if each.starts_at and each.window != "upcoming"), default=None),
    )


# The match. ---------------------------------------------------------------------------------------------------------


def _match(connection: Connection, person: Person) -> Match:
    stored = _stored_mapping(connection, person.id)
    rows = (
        connection.execute(
            sa.text(sql("explain/match").format(contact_mapping=sql("transforms/contact_mapping"))),
            {"person_id": person.id},
        )
        .mappings()
        .all()
    )
    absence = _contact_absence(connection, stored.contact_id) if stored and stored.contact_id else None
    asked = next((row for row in rows if row["side"] == "person"), None)
    if asked is None:
        return Match(stored, None, (), absence)
    contacts = [row for row in rows if row["side"] == "contact"]
    patients = [row for row in rows if row["side"] == "patient"]
    return Match(stored, _mapping(asked), _passes(asked, contacts, patients), absence)


def _stored_mapping(connection: Connection, person_id: str) -> Mapping | None:
    row = (
        connection.execute(
            sa.text(
                "select status, method, contact_id, candidate_count from cliniko.contact_mapping"
                " where patient_id = :person_id"
            ),
            {"person_id": person_id},
        )
        .mappings()
        .one_or_none()
    )
    return None if row is None else _mapping(row)


def _mapping(row: RowMapping) -> Mapping:
    return Mapping(row["status"], row["method"], row["contact_id"], row["candidate_count"])


def _contact_absence(connection: Connection, contact_id: UUID) -> ContactAbsence | None:
    return connection.execute(
        sa.text("select cliniko.contact_absence(:contact_id)"), {"contact_id": contact_id}
    ).scalar_one()


def _passes(asked: RowMapping, contacts: Sequence[RowMapping], patients: Sequence[RowMapping]) -> tuple[Pass, ...]:
    """The passes the person took part in, up to the one that decided, and why the next was closed to it."""
    passes = [_pass_by_id(asked, [each for each in contacts if each["named_person_id"] == asked["id"]])]
    if passes[-1].outcome != "no_candidate":
        return tuple(passes)
    if not asked["is_current"]:
        return (*passes, Pass("email", "not_taken", "not_current"), Pass("name", "not_taken", "not_current"))
    current = [each for each in patients if each["is_current"]]
    passes.append(
        _pass_by_key(
            "email",
            asked,
            [each for each in contacts if each["has_email"]],
            [each["id"] for each in current if each["has_email"] and each["method"] != "cliniko_patient_id"],
        )
    )
    if passes[-1].outcome != "no_candidate":
        return tuple(passes)
    passes.append(
        _pass_by_key(
            "name",
            asked,
            [each for each in contacts if each["has_name"]],
            [each["id"] for each in current if each["has_name"] and each["method"] in {None, "name"}],
        )
    )
    return tuple(passes)


def _pass_by_id(asked: RowMapping, contacts: Sequence[RowMapping]) -> Pass:
    candidates = tuple(
        Candidate(UUID(each["id"]), "free", each["named_patient_id"], each["has_name"]) for each in contacts
    )
    if not candidates:
        return Pass("cliniko_patient_id", "no_candidate", "no_contact")
    if len(candidates) == 1:
        return Pass("cliniko_patient_id", "matched", "only_pair", candidates)
    if asked["status"] == "matched":
        return Pass("cliniko_patient_id", "matched", "equal_names", candidates)
    return Pass("cliniko_patient_id", "ambiguous", "several", candidates)


def _pass_by_key(method: Method, asked: RowMapping, contacts: Sequence[RowMapping], others: Sequence[str]) -> Pass:
    candidates = tuple(_candidate(asked, each) for each in contacts)
    if asked["method"] == method and asked["status"] == "matched":
        alone = len(others) == 0 and sum(each.state == "free" for each in candidates) == 1
        return Pass(method, "matched", "only_pair" if alone else "equal_names", candidates, tuple(others))
    if asked["method"] == method:
        return Pass(method, "ambiguous", "several", candidates, tuple(others))
    if not asked["has_email" if method == "email" else "has_name"]:
        return Pass(method, "no_candidate", "no_key")
    return Pass(method, "no_candidate", "none_free" if candidates else "no_contact", candidates, tuple(others))


def _candidate(asked: RowMapping, contact: RowMapping) -> Candidate:
    contact_id, equal_name = UUID(contact["id"]), contact["has_name"]
    if contact["named_person_id"] is not None:
        return Candidate(contact_id, "names_another", contact["named_person_id"], equal_name)
    # What others took by name was still free when it came to e-mails, and in the pass by name there are no pairs
    # among several.
    if contact["method"] == "email" and contact["matched_person_id"] != asked["id"]:
        return Candidate(contact_id, "taken", contact["matched_person_id"], equal_name)
    return Candidate(contact_id, "free", None, equal_name)


# public.active_patients. --------------------------------------------------------------------------------------------


def _active_row(connection: Connection, match: Match, rules: Rules, state: State) -> tuple[ActiveRow | None, bool]:
    """The stored row of the person's contact, and whether one would be computed now, by that row's instant or, where
    there is none, the table's.
    """
    if match.stored is None or match.stored.contact_id is None:
        return None, False
    contact_id = match.stored.contact_id
    columns = ", ".join(map(quote, ("id", *ACTIVE_PATIENTS.written, "updated_at")))
    stored = (
        connection.execute(
            sa.text(f"select {columns} from {ACTIVE_PATIENTS.qualified} where contact_id = :contact_id"),
            {"contact_id": contact_id},
        )
        .mappings()
        .one_or_none()
    )
    judged_at = _utc(stored["search_date_to"]) if stored is not None else None
    judged_at = judged_at or state.judged_at
    computed = None if judged_at is None else _computed_row(connection, contact_id, rules.parameters(judged_at))
    if stored is None:
        return None, computed is not None
    differences = [each for each in ACTIVE_PATIENTS.columns if computed is not None and stored[each] != computed[each]]
    return _active_row_of(stored, differences), computed is not None


def _computed_row(connection: Connection, contact_id: UUID, parameters: dict[str, object]) -> RowMapping | None:
    query = sql("explain/active_patient").format(
        columns=", ".join(map(quote, ACTIVE_PATIENTS.written)), active_patients=sql("transforms/active_patients")
    )
    rows = connection.execute(sa.text(query), {"contact_id": contact_id, **parameters})
    return rows.mappings().one_or_none()


def _active_row_of(row: RowMapping, differences: Sequence[str]) -> ActiveRow:
    return ActiveRow(
        id=row["id"],
        contact_id=row["contact_id"],
        recent_appointment_count=row["recent_appointment_count"],
        upcoming_appointment_count=row["upcoming_appointment_count"],
        total_appointment_count=row["total_appointment_count"],
        last_appointment_date=_utc(row["last_appointment_date"]),
        search_date_from=_utc(row["search_date_from"]),
        search_date_to=_utc(row["search_date_to"]),
        updated_at=_utc(row["updated_at"]),
        differences=tuple(differences),
    )


def _utc(instant: datetime | None) -> datetime | None:
    """The columns are timestamps without a zone, in UTC."""
    return None if instant is None else instant.replace(tzinfo=UTC)


def _listed(row: ActiveRow, *, is_computed: bool) -> Listing:
    if not is_computed:
        return "out_of_date"
    return "differs" if row.differences else "listed"


def _unlisted(match: Match, state: State, is_active: bool, is_computed: bool) -> Listing:
    stored = match.stored
    if not is_active:
        return "not_computed" if is_computed else "not_active"
    if stored is None:
        return "unmapped"
    if stored.status != "matched":
        return stored.status
    if match.contact_absence is not None:
        return "contact_gone"
    return "not_computed" if is_computed or state.judged_at is None else "other_instant"
