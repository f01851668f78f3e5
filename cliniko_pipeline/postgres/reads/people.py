"""Patients without a contact, in the organization context that the caller opened."""

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
    """A patient without a contact; `candidate_count`: how many contacts it could be, of an ambiguous one."""

    patient_id: str
    status: WithoutContact
    candidate_count: int | None


def without_contact(
    connection: Connection, status: WithoutContact, *, after: str | None, limit: int
) -> list[PersonWithoutContact]:
    """Return the patients after the one with that id, in the order of their ids as numbers."""
    rows = connection.execute(
        statement(sql("reads/people_without_contact")), {"status": status.value, "after": after, "limit": limit}
    )
    return [PersonWithoutContact(row.patient_id, WithoutContact(row.status), row.candidate_count) for row in rows]
