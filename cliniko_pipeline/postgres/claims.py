"""What the asset checks ask of an organization's stored data: numbers only."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres import derivations, lost_matches
from cliniko_pipeline.postgres.derivations import Question
from cliniko_pipeline.postgres.engine import sql, statement
from cliniko_pipeline.postgres.lost_matches import LostMatches
from cliniko_pipeline.postgres.tables import (
    APPOINTMENTS,
    ATTENDEES,
    CONTACT_MAPPING,
    CURRENT_ATTENDANCES,
    PATIENTS,
)

RECOUNTED = (CURRENT_ATTENDANCES, PATIENTS, APPOINTMENTS, ATTENDEES, CONTACT_MAPPING)
"""What active_patients is counted from: first what is kept of it, then the rest."""


@dataclass(frozen=True)
class MappingCounts:
    """How many people have which status in `cliniko.contact_mapping`, how many of them are current (neither archived
    nor deleted), and how many contacts stand there twice.
    """

    matched: int
    ambiguous: int
    unmatched: int
    current_people: int
    current_unmatched: int
    contacts_used_twice: int

    @property
    def unmatched_share(self) -> float:
        """Of the current people; 0 where there is nobody."""
        return self.current_unmatched / self.current_people if self.current_people else 0.0


@dataclass(frozen=True)
class ActivePatientsRecount:
    """`public.active_patients` against a second reckoning: rows there are, missing, too many, and twice."""

    stored: int
    missing: int
    surplus: int
    twice: int

    @property
    def agrees(self) -> bool:
        """Whether every active patient with a contact is stored once, and nobody else."""
        return not (self.missing or self.surplus or self.twice)


@dataclass(frozen=True)
class AttendancesRecount:
    """`cliniko.current_attendances` against a second reckoning: rows that are missing, and too many."""

    missing: int
    surplus: int


def rejected_counts(connection: Connection) -> dict[str, int]:
    """How many records of each resource are set aside at present; resources without any are left out."""
    rows = connection.execute(
        sa.text(
            "select resource, count(*) as records from cliniko.rejected_records group by resource order by resource"
        )
    )
    return {row.resource: row.records for row in rows}


def mapping_counts(connection: Connection, *, anew: bool) -> tuple[MappingCounts, bool]:
    """Counts the organization's mapping; and whether it was counted earlier, and nothing has changed."""
    query = sql("mapping_counts")
    found, is_kept = derivations.found_before(
        connection,
        Question("mapping_counts", (CONTACT_MAPPING, PATIENTS), query),
        lambda: {str(name): count for name, count in connection.execute(statement(query)).mappings().one().items()},
        anew=anew,
    )
    return MappingCounts(**found), is_kept


def kept_matches(connection: Connection, *, anew: bool) -> tuple[LostMatches, bool]:
    """Return which matches have lost their contact, and whether that was found earlier of the same mapping: a sync that
    leaves it as it was has compared it with the contacts.
    """
    query = sql("matches_without_contact")
    found, is_kept = derivations.found_before(
        connection,
        Question("kept_matches", (CONTACT_MAPPING,), query),
        lambda: asdict(lost_matches.of_stored_mapping(connection)),
        anew=anew,
    )
    return LostMatches(**found), is_kept


def recount_active_patients(
    connection: Connection, parameters: Mapping[str, object], *, anew: bool
) -> tuple[ActivePatientsRecount, bool]:
    """Reckons once more who belongs into the table; `parameters` are those of its query (active_patients.sql).

    Where the last reckoning from the appointments up found all well, and nothing has changed but the time, it begins at
    the attendances that are kept (true).
    """
    query = sql("recount_active_patients")

    def recounted(query: str) -> ActivePatientsRecount:
        return ActivePatientsRecount(**connection.execute(statement(query), dict(parameters)).mappings().one())

    def look() -> Mapping[str, bool]:
        nonlocal whole
        # After a first sync the planner knows nothing of the tables yet.
        connection.execute(statement(sql("plan_for_whole_tables")))
        whole = recounted(query)
        return {"agrees": whole.agrees}

    whole: ActivePatientsRecount | None = None
    lasting = {name: value for name, value in parameters.items() if name != "as_of"}
    question = Question("recount", RECOUNTED, query, lasting)
    found, _ = derivations.found_before(connection, question, look, anew=anew)
    if whole is None and not (
        found["agrees"] and derivations.is_current(connection, CURRENT_ATTENDANCES, RECOUNTED[1:])
    ):
        look()
    if whole is not None:
        return whole, False
    return recounted(sql("recount_from_attendances")), True


def recount_attendances(connection: Connection, parameters: Mapping[str, object]) -> AttendancesRecount | None:
    """Reckons once more which attendances are to be kept; None where they are of tables that have changed since."""
    if not derivations.is_current(connection, CURRENT_ATTENDANCES, RECOUNTED[1:]):
        return None
    connection.execute(statement(sql("plan_for_whole_tables")))
    lasting = {"activity_window": parameters["activity_window"]}
    return AttendancesRecount(**connection.execute(statement(sql("recount_attendances")), lasting).mappings().one())
