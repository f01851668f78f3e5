"""Counts of an organization's stored data for the asset checks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import sql, statement
from cliniko_pipeline.postgres.reads import lost_matches
from cliniko_pipeline.postgres.reads.lost_matches import LostMatches
from cliniko_pipeline.postgres.tables import (
    CONTACT_MAPPING,
    PATIENTS,
)
from cliniko_pipeline.postgres.writing import derivations
from cliniko_pipeline.postgres.writing.derivations import Question


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
    """The rows of `public.active_patients` compared with a second count: stored, missing, surplus and duplicate."""

    stored: int
    missing: int
    surplus: int
    twice: int

    @property
    def agrees(self) -> bool:
        """Whether every active patient with a contact is stored once, and nobody else."""
        return not (self.missing or self.surplus or self.twice)


def rejected_counts(connection: Connection) -> dict[str, int]:
    """How many records of each resource are set aside at present; resources without any are left out."""
    rows = connection.execute(
        sa.text(
            "select resource, count(*) as records from cliniko.rejected_records group by resource order by resource"
        )
    )
    return {row.resource: row.records for row in rows}


def mapping_counts(connection: Connection, *, force: bool) -> tuple[MappingCounts, bool]:
    """Return the counts of the mapping, and whether they are kept from an earlier count of the same rows."""
    query = sql("checks/mapping_counts")
    found, is_kept = derivations.read_or_compute(
        connection,
        Question("mapping_counts", (CONTACT_MAPPING, PATIENTS), query),
        lambda: {str(name): count for name, count in connection.execute(statement(query)).mappings().one().items()},
        force=force,
    )
    return MappingCounts(**found), is_kept


def kept_matches(connection: Connection, *, force: bool) -> tuple[LostMatches, bool]:
    """Return which matches have lost their contact, and whether that was found earlier of the same mapping: a sync that
    leaves it as it was has compared it with the contacts.
    """
    query = sql("checks/matches_without_contact")
    found, is_kept = derivations.read_or_compute(
        connection,
        Question("kept_matches", (CONTACT_MAPPING,), query),
        lambda: asdict(lost_matches.of_stored_mapping(connection)),
        force=force,
    )
    return LostMatches(**found), is_kept


def recount_active_patients(connection: Connection, parameters: Mapping[str, object]) -> ActivePatientsRecount:
    """Count again who belongs into the table, from the appointments up; `parameters` as in active_patients.sql."""
    row = connection.execute(statement(sql("checks/recount_active_patients")), dict(parameters)).mappings().one()
    return ActivePatientsRecount(**row)
