"""What the asset checks ask of an organization's stored data: numbers only."""

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import sql


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


def rejected_counts(connection: Connection) -> dict[str, int]:
    """How many records of each resource are set aside at present; resources without any are left out."""
    rows = connection.execute(
        sa.text(
            "select resource, count(*) as records from cliniko.rejected_records group by resource order by resource"
        )
    )
    return {row.resource: row.records for row in rows}


def mapping_counts(connection: Connection) -> MappingCounts:
    """Counts the organization's mapping."""
    return MappingCounts(**connection.execute(sa.text(sql("mapping_counts"))).mappings().one())


def recount_active_patients(connection: Connection, parameters: Mapping[str, object]) -> ActivePatientsRecount:
    """Reckons once more who belongs into the table; `parameters` are those of its query (active_patients.sql)."""
    # After a first sync the planner knows nothing of the tables yet.
    connection.execute(sa.text(sql("plan_for_whole_tables")))
    return ActivePatientsRecount(
        **connection.execute(sa.text(sql("recount_active_patients")), dict(parameters)).mappings().one()
    )
