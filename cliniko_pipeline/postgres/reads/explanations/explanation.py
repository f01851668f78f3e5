"""The explanation of one patient: the stored data it rests on, the person, the attendances, the match and the row.

Only ids, instants and kinds leave the database, never a name or an e-mail address. The texts stand in `cli/explain`.

The match is computed by contact_mapping.sql itself, the row by active_patients.sql. `explain/attendances.sql` repeats
the rules of active_patients.sql, and also returns the attendances that do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from cliniko_pipeline.postgres.engine import sql
from cliniko_pipeline.postgres.reads.explanations.attendances import Attendance, Counts, count, read_attendances
from cliniko_pipeline.postgres.reads.explanations.match import Match, read_match
from cliniko_pipeline.postgres.reads.explanations.person import Person, read_person, values_of
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS
from cliniko_pipeline.postgres.writing.merge import quote

AsOfSource = Literal["argument", "active_patients", "last_run", "now"]

Listing = Literal[
    "listed",  # the row is correct
    "differs",  # the row has other values than are computed now, for the same instant
    "out_of_date",  # there is a row, and none is computed now
    "not_active",  # no row, which is correct
    "unmapped",  # no row: the mapping is older than the patient
    "unmatched",
    "ambiguous",
    "contact_gone",  # no row: the contact was deleted or is excluded
    "other_instant",  # no row: the person was not active at the instant the table was computed for
    "not_computed",  # no row: the table is older than the stored records
]
"""How the person stands in public.active_patients."""


@dataclass(frozen=True)
class Rules:
    """The settings that the numbers depend on."""

    activity_window: timedelta
    count_no_shows: bool

    def window_start(self, as_of: datetime) -> datetime:
        """Return the beginning of the window that ends at `as_of`."""
        try:
            return as_of - self.activity_window
        except OverflowError:  # before the calendar begins
            return datetime.min.replace(tzinfo=UTC)

    def parameters(self, as_of: datetime) -> dict[str, object]:
        """Return the parameters of active_patients.sql."""
        return {
            "as_of": as_of,
            "activity_window": self.activity_window,
            "count_no_shows": self.count_no_shows,
        }


@dataclass(frozen=True)
class State:
    """The age and completeness of the organization's stored data.

    Attributes:
        judged_at: the instant public.active_patients was computed for; None where it is empty.
        last_computed_at: start of the last successful run that computed it.
        last_run_status, last_run_started_at, last_run_error: of the last run of any kind.
        resources_complete: resources whose last crawl is complete.
        rejected_records: number of rejected records.
        doubtful_deletions: number of records that the last full crawls missed but did not mark as deleted.
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
class ActiveRow:
    """The person's row of public.active_patients, without the appointments themselves.

    `differences`: the columns whose values differ from those computed now, for the row's own instant.
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
    """A patient without a record.

    `rejected_because`: why its record was rejected, if it was; `mentions`: number of records that refer to it.
    """

    rejected_because: str | None
    mentions: int


@dataclass(frozen=True)
class Explanation:
    """The explanation of one patient of one organization."""

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
        return _is_active(self.person, self.counts)

    @property
    def changed_after(self) -> datetime | None:
        """When a record of the person was last written, if that was after its row was computed."""
        if self.row is None or self.row.updated_at is None:
            return None
        records = (*self.person.chain, *self.person.merged, *self.attendances)
        last = max(record.synced_at for record in records)
        return last if last > self.row.updated_at else None


def explain(connection: Connection, patient_id: str, rules: Rules, as_of: datetime | None = None) -> Explanation | None:
    """Return the explanation of a patient; None where it has no record. Makes the transaction read-only.

    `as_of`: the instant to explain; None: that of the last computation.
    """
    connection.execute(sa.text("set transaction read only"))
    person = read_person(connection, patient_id)
    if person is None:
        return None
    state = State(**connection.execute(sa.text(sql("explain/state"))).mappings().one())
    instant, source = _as_of(as_of, state)
    attendances = read_attendances(connection, person.patient_ids, rules.parameters(instant))
    counts = count(attendances)
    match = read_match(connection, person.id)
    row, is_computed = _read_row(connection, match, rules, state)
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
        listing=_listing(row, match, state, is_active=_is_active(person, counts), is_computed=is_computed),
    )


def unknown_patient(connection: Connection, patient_id: str) -> UnknownPatient:
    """Return what is stored of a patient that has no record."""
    row = connection.execute(sa.text(sql("explain/unknown_patient")), {"patient_id": patient_id}).mappings().one()
    return UnknownPatient(**row)


def _is_active(person: Person, counts: Counts) -> bool:
    return person.state == "current" and counts.recent >= 1


def _as_of(argument: datetime | None, state: State) -> tuple[datetime, AsOfSource]:
    if argument is not None:
        return argument, "argument"
    if state.judged_at is not None:
        return state.judged_at, "active_patients"
    if state.last_computed_at is not None:
        return state.last_computed_at, "last_run"
    return state.now, "now"


def _read_row(connection: Connection, match: Match, rules: Rules, state: State) -> tuple[ActiveRow | None, bool]:
    """Return the stored row of the person's contact, and whether one is computed now.

    The instant is the stored row's or, without one, the table's.
    """
    if match.stored is None or match.stored.contact_id is None:
        return None, False
    contact = {"contact_id": match.stored.contact_id}
    columns = ", ".join(map(quote, ("id", *ACTIVE_PATIENTS.written, "updated_at")))
    query = f"select {columns} from {ACTIVE_PATIENTS.qualified} where contact_id = :contact_id"
    stored = connection.execute(sa.text(query), contact).mappings().one_or_none()
    as_of = (None if stored is None else _utc(stored["search_date_to"])) or state.judged_at
    if as_of is None:
        computed = None
    else:
        columns = ", ".join(map(quote, ACTIVE_PATIENTS.written))
        query = (
            f"select {columns} from ({sql('transforms/active_patients')}) as computed where contact_id = :contact_id"
        )
        rows = connection.execute(sa.text(query), contact | rules.parameters(as_of))
        computed = rows.mappings().one_or_none()
    return None if stored is None else _active_row(stored, computed), computed is not None


def _active_row(stored: RowMapping, computed: RowMapping | None) -> ActiveRow:
    differences = [name for name in ACTIVE_PATIENTS.columns if computed is not None and stored[name] != computed[name]]
    values = {name: _utc(value) for name, value in values_of(ActiveRow, stored).items()}
    return ActiveRow(**values, differences=tuple(differences))


def _utc(value: Any) -> Any:
    """Return an instant of a column without time zone, which is in UTC, as an aware one; other values unchanged."""
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value


def _listing(row: ActiveRow | None, match: Match, state: State, *, is_active: bool, is_computed: bool) -> Listing:
    if row is not None:
        return "out_of_date" if not is_computed else "differs" if row.differences else "listed"
    if not is_active:
        return "not_computed" if is_computed else "not_active"
    if match.stored is None:
        return "unmapped"
    if match.stored.status != "matched":
        return match.stored.status
    if match.contact_absence is not None:
        return "contact_gone"
    return "not_computed" if is_computed or state.judged_at is None else "other_instant"
