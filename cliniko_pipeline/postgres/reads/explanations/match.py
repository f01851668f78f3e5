"""The match of a person with a contact, as stored and as contact_mapping.sql decides now."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from cliniko_pipeline.postgres.engine import sql
from cliniko_pipeline.postgres.reads.explanations.person import values_of

Method = Literal["cliniko_patient_id", "email", "name"]
PassOutcome = Literal["matched", "ambiguous", "no_candidate", "not_taken"]
PassReason = Literal[
    "only_pair",  # one person and one contact
    "equal_names",  # several candidates, and the names of this pair are equal and unique on both sides
    "several",  # several possible contacts
    "no_key",  # the person has no e-mail or no name to compare
    "no_contact",  # no contact has the person's id, e-mail or name
    "none_free",  # all contacts with the person's e-mail or name belong to other people
    "not_current",  # archived and deleted people take part in the first pass only
]

ContactAbsence = Literal["deleted", "soft_deleted", "filtered"]
"""Why a contact is not used. The application marks `soft_deleted` contacts; a setting excludes `filtered` contacts."""


@dataclass(frozen=True)
class Mapping:
    """A row of cliniko.contact_mapping."""

    status: Literal["matched", "ambiguous", "unmatched"]
    method: Method | None
    contact_id: UUID | None
    candidate_count: int | None


@dataclass(frozen=True)
class Candidate:
    """A contact that a pass compares.

    Attributes:
        state: `free`; `names_another` if the contact has another person's id; `taken` if an earlier pass matched it.
        patient_id: the other person's id, or in the first pass the patient id that the contact has.
        equal_name: whether the contact has the person's name.
    """

    id: UUID
    state: Literal["free", "names_another", "taken"]
    patient_id: str | None
    equal_name: bool


@dataclass(frozen=True)
class Pass:
    """The outcome of one pass of the mapping, computed from the stored data.

    `other_patient_ids` are the other patients with the same e-mail or name that take part in the pass.
    """

    method: Method
    outcome: PassOutcome
    reason: PassReason
    candidates: tuple[Candidate, ...] = ()
    other_patient_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Match:
    """The stored mapping of a person, and the passes up to the deciding pass.

    Attributes:
        stored: the stored mapping, if there is one.
        now: the mapping that the next sync will store; None for a person without a record.
        contact_absence: why the contact of the stored mapping is not used; None if it is used.
    """

    stored: Mapping | None
    now: Mapping | None
    passes: tuple[Pass, ...]
    contact_absence: ContactAbsence | None = None


def read_match(connection: Connection, person_id: str) -> Match:
    """Return the person's match, as stored and as the next sync will store it."""
    found = connection.execute(
        sa.text(
            "select *, case when contact_id is not null then cliniko.contact_absence(contact_id) end as absence"
            " from cliniko.contact_mapping where patient_id = :person_id"
        ),
        {"person_id": person_id},
    )
    row = found.mappings().one_or_none()
    stored = None if row is None else Mapping(**values_of(Mapping, row))
    absence = None if row is None else row["absence"]
    query = sql("explain/match").format(contact_mapping=sql("transforms/contact_mapping"))
    rows = connection.execute(sa.text(query), {"person_id": person_id}).mappings().all()
    person = next((row for row in rows if row["side"] == "person"), None)
    if person is None:
        return Match(stored, None, (), absence)
    contacts = [row for row in rows if row["side"] == "contact"]
    patients = [row for row in rows if row["side"] == "patient" and row["is_current"]]
    return Match(stored, Mapping(**values_of(Mapping, person)), _passes(person, contacts, patients), absence)


def _passes(person: RowMapping, contacts: Sequence[RowMapping], patients: Sequence[RowMapping]) -> tuple[Pass, ...]:
    passes = [_pass_by_id(person, [contact for contact in contacts if contact["named_person_id"] == person["id"]])]
    if passes[0].outcome == "no_candidate" and not person["is_current"]:
        return (*passes, Pass("email", "not_taken", "not_current"), Pass("name", "not_taken", "not_current"))
    if passes[-1].outcome == "no_candidate":
        passes.append(_pass_by_key("email", person, contacts, patients))
    if passes[-1].outcome == "no_candidate":
        passes.append(_pass_by_key("name", person, contacts, patients))
    return tuple(passes)


def _pass_by_id(person: RowMapping, contacts: Sequence[RowMapping]) -> Pass:
    candidates = tuple(
        Candidate(UUID(contact["id"]), "free", contact["named_patient_id"], contact["has_name"]) for contact in contacts
    )
    if not candidates:
        return Pass("cliniko_patient_id", "no_candidate", "no_contact")
    if len(candidates) == 1:
        return Pass("cliniko_patient_id", "matched", "only_pair", candidates)
    if person["status"] == "matched":
        return Pass("cliniko_patient_id", "matched", "equal_names", candidates)
    return Pass("cliniko_patient_id", "ambiguous", "several", candidates)


def _pass_by_key(
    method: Literal["email", "name"],
    person: RowMapping,
    contacts: Sequence[RowMapping],
    patients: Sequence[RowMapping],
) -> Pass:
    has_key = f"has_{method}"
    # Patients that an earlier pass has decided take no part.
    earlier = {"cliniko_patient_id"} if method == "email" else {"cliniko_patient_id", "email"}
    others = tuple(patient["id"] for patient in patients if patient[has_key] and patient["method"] not in earlier)
    candidates = tuple(_candidate(person, contact) for contact in contacts if contact[has_key])
    if person["method"] == method and person["status"] == "matched":
        is_only_pair = not others and sum(candidate.state == "free" for candidate in candidates) == 1
        return Pass(method, "matched", "only_pair" if is_only_pair else "equal_names", candidates, others)
    if person["method"] == method:
        return Pass(method, "ambiguous", "several", candidates, others)
    if not person[has_key]:
        return Pass(method, "no_candidate", "no_key")
    return Pass(method, "no_candidate", "none_free" if candidates else "no_contact", candidates, others)


def _candidate(person: RowMapping, contact: RowMapping) -> Candidate:
    contact_id, equal_name = UUID(contact["id"]), contact["has_name"]
    if contact["named_person_id"] is not None:
        return Candidate(contact_id, "names_another", contact["named_person_id"], equal_name)
    # A match by name does not make a contact `taken`, because the pass by name is the last one.
    if contact["method"] == "email" and contact["matched_person_id"] != person["id"]:
        return Candidate(contact_id, "taken", contact["matched_person_id"], equal_name)
    return Candidate(contact_id, "free", None, equal_name)
