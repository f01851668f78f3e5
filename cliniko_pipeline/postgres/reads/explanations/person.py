"""The person that a patient stands for, at the end of a chain of merges."""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from cliniko_pipeline.postgres.engine import sql

PersonState = Literal["current", "archived", "deleted", "no_record"]
"""The state of a person. `no_record` means that the chain of merges ends at a patient without a record."""


@dataclass(frozen=True)
class PatientRecord:
    """A stored patient without name and e-mail address.

    `vanished_at` is when a full sync marked the patient as deleted in Cliniko.
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
    """The patient at the end of a chain of merges, with all patients merged into it.

    Attributes:
        id: the id of the patient at the end of the chain.
        record: the record of this patient, if it exists.
        chain: the explained patient, the patient that it was merged into, and so on. A loop is followed once.
        merged: all other patients that are merged into this person.
        in_loop: whether the merges form a loop. The lowest id in a loop is the person's id.
    """

    id: str
    record: PatientRecord | None
    chain: tuple[PatientRecord, ...]
    merged: tuple[PatientRecord, ...]
    in_loop: bool

    @property
    def patient_ids(self) -> list[str]:
        """Return the ids of all patients that are this person, the person's own id first."""
        ids = [record.id for record in (*self.chain, *self.merged)]
        return sorted(ids, key=lambda patient_id: patient_id != self.id)

    @property
    def state(self) -> PersonState:
        """Return the state of the person. Only a current person can be active."""
        if self.record is None:
            return "no_record"
        if self.record.archived_at is not None:
            return "archived"
        return "current" if self.record.deleted_at is None else "deleted"


def read_person(connection: Connection, patient_id: str) -> Person | None:
    """Return the patient's person, or None if the patient has no record."""
    rows = connection.execute(sa.text(sql("explain/person")), {"patient_id": patient_id}).mappings().all()
    if not rows:
        return None
    records = {row["id"]: PatientRecord(**values_of(PatientRecord, row)) for row in rows}
    chain: dict[str, PatientRecord] = {}
    next_id: str | None = patient_id
    while next_id is not None and next_id in records and next_id not in chain:
        chain[next_id] = records[next_id]
        next_id = records[next_id].merged_into_id
    person_id = str(rows[0]["person_id"])
    return Person(
        id=person_id,
        record=records.get(person_id),
        chain=tuple(chain.values()),
        merged=tuple(record for record in records.values() if record.id not in chain and record.id != person_id),
        in_loop=next(row["in_loop"] for row in rows if row["id"] == patient_id),
    )


def values_of(kind: type, row: RowMapping) -> dict[str, Any]:
    """Return the row's values for the fields of a dataclass. Fields that the row lacks are left out."""
    return {field.name: row[field.name] for field in fields(kind) if field.name in row}
