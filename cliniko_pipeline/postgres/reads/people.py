"""Patients without a contact, in the caller's organization context."""

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import sql, statement


class WithoutContact(StrEnum):
    """Why a patient has no contact."""

    UNMATCHED = "unmatched"
    AMBIGUOUS = "ambiguous"


@dataclass(frozen=True)
class PersonWithoutContact:
    """A patient without a contact. `candidate_count` is the number of an ambiguous patient's candidates."""

    patient_id: str
    status: WithoutContact
    candidate_count: int | None


def without_contact(
    connection: Connection, status: WithoutContact, *, after: str | None, limit: int
) -> list[PersonWithoutContact]:
    """Return patients in numerical order of their ids, starting after the id `after`."""
    rows = connection.execute(
        statement(sql("reads/people_without_contact")), {"status": status.value, "after": after, "limit": limit}
    )
    return [PersonWithoutContact(row.patient_id, WithoutContact(row.status), row.candidate_count) for row in rows]
