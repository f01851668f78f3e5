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
    """The numbers of people in `cliniko.contact_mapping` by status.

    Current people are neither archived nor deleted. `contacts_used_twice` counts each use of a contact after the first.
    """

    matched: int
    ambiguous: int
    unmatched: int
    current_people: int
    current_unmatched: int
    contacts_used_twice: int

    @property
    def unmatched_share(self) -> float:
        """Return the share of unmatched people among current people, or 0 without current people."""
        return self.current_unmatched / self.current_people if self.current_people else 0.0


@dataclass(frozen=True)
class ActivePatientsRecount:
    """The numbers of stored, missing, surplus and duplicate rows of `public.active_patients`."""

    stored: int
    missing: int
    surplus: int
    twice: int

    @property
    def agrees(self) -> bool:
        """Return whether the table has one row per active patient with a contact, and no other row."""
        return not (self.missing or self.surplus or self.twice)


def rejected_counts(connection: Connection) -> dict[str, int]:
    """Return the number of rejected records by resource, without resources that have none."""
    rows = connection.execute(
        sa.text(
            "select resource, count(*) as records from cliniko.rejected_records group by resource order by resource"
        )
    )
    return {row.resource: row.records for row in rows}


def mapping_counts(connection: Connection, *, force: bool) -> tuple[MappingCounts, bool]:
    """Return the counts of the mapping, and whether the result of an earlier count was reused."""
    query = sql("checks/mapping_counts")
    found, is_kept = derivations.read_or_compute(
        connection,
        Question("mapping_counts", (CONTACT_MAPPING, PATIENTS), query),
        lambda: {str(name): count for name, count in connection.execute(statement(query)).mappings().one().items()},
        force=force,
    )
    return MappingCounts(**found), is_kept


def kept_matches(connection: Connection, *, force: bool) -> tuple[LostMatches, bool]:
    """Count stored matches that lost their contact; return whether an earlier count was reused.

    A count is reused while the mapping is unchanged. Each sync compares the mapping with the contacts anyway.
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
    """Recompute the active patients in another way, and compare them with the stored rows."""
    row = connection.execute(statement(sql("checks/recount_active_patients")), dict(parameters)).mappings().one()
    return ActivePatientsRecount(**row)
