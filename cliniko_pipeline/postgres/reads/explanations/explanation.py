"""The explanation of one patient: data state, person, attendances, match and row.

Only ids, times and kinds are read, no names and no e-mail addresses. `cli/explain` has the texts.

contact_mapping.sql computes the match, and active_patients.sql computes the row. `explain/attendances.sql` repeats the
rules of active_patients.sql, because it also returns attendances that are not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from cliniko_pipeline.postgres.engine import sql
from cliniko_pipeline.postgres.reads.explanations.attendances import Attendance, Counts, count, read_attendances
from cliniko_pipeline.postgres.reads.explanations.match import Match, read_match
from cliniko_pipeline.postgres.reads.explanations.person import Person, read_person, values_of
from cliniko_pipeline.postgres.rules import Rules
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS
from cliniko_pipeline.postgres.writing.merge import quote

AsOfSource = Literal["argument", "active_patients", "last_run", "now"]

Listing = Literal[
    "listed",  # the row is correct
    "differs",  # a computation for the row's instant now gives other values
    "out_of_date",  # a computation for the row's instant now gives no row
    "not_active",  # there is no row, which is correct
    "unmapped",  # there is no row, because the mapping is older than the patient
    "unmatched",  # there is no row, because the person has no contact
    "ambiguous",  # there is no row, because the person's contact is uncertain
    "contact_gone",  # there is no row, because the contact was deleted or is excluded
    "other_instant",  # there is no row, because the person was not active when the table was computed
    "not_computed",  # there is no row, because the table is older than the stored records
]
"""Whether public.active_patients has the person's row, or why there is no row."""


@dataclass(frozen=True)
class State:
    """The age and completeness of the organization's stored data.

    Attributes:
        judged_at: the instant for which public.active_patients was computed; None if the table is empty.
        last_computed_at: the start of the last successful run that computed public.active_patients.
        last_run_status: the status of the last run of any kind.
        last_run_started_at: the start of the last run of any kind.
        last_run_error: the error of the last run of any kind.
        resources_complete: the resources whose last crawl is complete.
        rejected_records: the number of rejected records.
        doubtful_deletions: the number of records that the last full crawls missed but did not mark as deleted.
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
    """The person's row of public.active_patients, without the lists of appointments.

    `differences` are the columns whose values would change in a computation for the row's instant.
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

    `rejected_because` is the reason if a record was rejected. `mentions` counts the records that refer to the patient.
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
        """Return whether the person is active at `as_of`."""
        return _is_active(self.person, self.counts)

    @property
    def changed_after(self) -> datetime | None:
        """Return when a record of the person was last written; None if the row is not older."""
        if self.row is None or self.row.updated_at is None:
            return None
        records = (*self.person.chain, *self.person.merged, *self.attendances)
        last = max(record.synced_at for record in records)
        return last if last > self.row.updated_at else None


def explain(connection: Connection, patient_id: str, rules: Rules, as_of: datetime | None = None) -> Explanation | None:
    """Return the explanation of a patient, or None if the patient has no record.

    `as_of` is the instant to explain, by default the instant of the last computation. The transaction becomes
    read-only.
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
    """Return what is stored about a patient without a record."""
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
    """Return the stored row of the person's contact, and whether a computation now gives a row.

    The computation is for the instant of the stored row, or of the table if there is no row.
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
    """Return a UTC time without time zone as an aware time; return other values unchanged."""
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
