"""Tests of the contact mapping's passes by id, e-mail and name, as stored and as explained."""

from typing import Any

import pytest

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline_tests.support.hostile_accounts import WireRecord, contact, patient
from cliniko_pipeline_tests.support.stored_clinics import AS_OF, EMAIL, ENDED, StoredClinic

# The pass, its outcome, the reason, the candidates (contact, state, patient) and other patients with the same key.
ExplainedPass = tuple[str, str, str, list[tuple[int, str, str | None]], list[str]]
NO_ID: ExplainedPass = ("cliniko_patient_id", "no_candidate", "no_contact", [], [])
NO_EMAIL: ExplainedPass = ("email", "no_candidate", "no_key", [], [])
BY_ID, FREE, BOTH_FREE = "cliniko_patient_id", [(1, "free", None)], [(1, "free", None), (2, "free", None)]
ANN = patient("1", "Ann")
ANN_WITH_EMAIL = patient("1", "Ann", email=EMAIL)
FAMILY = [ANN_WITH_EMAIL, patient("2", "Bo", email=EMAIL)]

CASES: dict[str, tuple[list[WireRecord], list[dict[str, Any]], list[ExplainedPass]]] = {
    "named": ([ANN], [contact(1, cliniko_patient_id=" 1 ")], [(BY_ID, "matched", "only_pair", [(1, "free", "1")], [])]),
    "named by a merged id": (
        [ANN, patient("2", merged_into="1")],
        [contact(1, cliniko_patient_id="2")],
        [(BY_ID, "matched", "only_pair", [(1, "free", "2")], [])],
    ),
    "named twice, once by name too": (
        [ANN],
        [contact(1, cliniko_patient_id="1", name="Bo"), contact(2, cliniko_patient_id="1", name="ANN")],
        [(BY_ID, "matched", "equal_names", [(1, "free", "1"), (2, "free", "1")], [])],
    ),
    "named twice": (
        [ANN],
        [contact(1, cliniko_patient_id="1", name="Bo"), contact(2, cliniko_patient_id="1", name="Cy")],
        [(BY_ID, "ambiguous", "several", [(1, "free", "1"), (2, "free", "1")], [])],
    ),
    "archived": (
        [patient("1", "Ann", email=EMAIL, archived_at=ENDED)],
        [contact(1, name="Ann", email=EMAIL)],
        [NO_ID, ("email", "not_taken", "not_current", [], []), ("name", "not_taken", "not_current", [], [])],
    ),
    "same e-mail": (
        [ANN_WITH_EMAIL],
        [contact(1, name="Bo", email=EMAIL.upper())],
        [NO_ID, ("email", "matched", "only_pair", FREE, [])],
    ),
    "a family": (
        FAMILY,
        [contact(1, name="Ann", email=EMAIL), contact(2, name="Cy", email=EMAIL)],
        [NO_ID, ("email", "matched", "equal_names", BOTH_FREE, ["2"])],
    ),
    "an e-mail of two patients": (
        FAMILY,
        [contact(1, name="Cy", email=EMAIL)],
        [NO_ID, ("email", "ambiguous", "several", FREE, ["2"])],
    ),
    "an e-mail of two contacts": (
        [ANN_WITH_EMAIL],
        [contact(1, name="Cy", email=EMAIL), contact(2, name="Di", email=EMAIL)],
        [NO_ID, ("email", "ambiguous", "several", BOTH_FREE, [])],
    ),
    "an e-mail of a family, one of whom is found": (
        FAMILY,
        [contact(1, name="Bo", email=EMAIL), contact(2, name="Cy", email=EMAIL)],
        [NO_ID, ("email", "ambiguous", "several", [(1, "taken", "2"), (2, "free", None)], ["2"])],
    ),
    "a contact that names another": (
        [ANN_WITH_EMAIL, patient("77", "Ann", email=EMAIL)],
        [contact(1, name="Ann", email=EMAIL, cliniko_patient_id="77")],
        [
            NO_ID,
            ("email", "no_candidate", "none_free", [(1, "names_another", "77")], []),
            ("name", "no_candidate", "none_free", [(1, "names_another", "77")], []),
        ],
    ),
    "no contact": (
        [ANN_WITH_EMAIL],
        [contact(1, name="Bo", email="bo@clinic.example")],
        [NO_ID, ("email", "no_candidate", "no_contact", [], []), ("name", "no_candidate", "no_contact", [], [])],
    ),
    "a contact taken by another of the family": (
        FAMILY,
        [contact(1, name="Bo", email=EMAIL), contact(2, name="Ann")],
        [
            NO_ID,
            ("email", "no_candidate", "none_free", [(1, "taken", "2")], ["2"]),
            ("name", "matched", "only_pair", [(2, "free", None)], []),
        ],
    ),
    "a contact of the name taken by e-mail": (
        [ANN, FAMILY[1]],
        [contact(1, name="Ann", email=EMAIL)],
        [NO_ID, NO_EMAIL, ("name", "no_candidate", "none_free", [(1, "taken", "2")], [])],
    ),
    "a name of two patients": (
        [ANN, patient("2", "Ann", archived_at=ENDED), patient("3", "ann"), patient("4", "Ann")],
        [contact(1, name="Ann"), contact(4, cliniko_patient_id="4")],
        [NO_ID, NO_EMAIL, ("name", "ambiguous", "several", FREE, ["3"])],
    ),
    "a name of two contacts": (
        [ANN],
        [contact(1, name="Ann"), contact(2, name=" ", first_name="ANN")],
        [NO_ID, NO_EMAIL, ("name", "ambiguous", "several", BOTH_FREE, [])],
    ),
    "neither e-mail nor name": (
        [patient("1", " ", email=" ")],
        [contact(1, name="", email="")],
        [NO_ID, NO_EMAIL, ("name", "no_candidate", "no_key", [], [])],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_passes_of_the_mapping(module_database: Database, case: str) -> None:
    """The stored row has the outcome of the last pass."""
    patients, contacts, expected = CASES[case]
    clinic = StoredClinic(module_database)
    clinic.store(patients=patients)
    clinic.add_contacts(*contacts)
    clinic.compute()
    match = clinic.explain("1", AS_OF).match
    numbers = {clinic.contact_id(number): number for number in range(1, 10)}
    assert [
        (
            each.method,
            each.outcome,
            each.reason,
            sorted((numbers[one.id], one.state, one.patient_id) for one in each.candidates),
            list(each.other_patient_ids),
        )
        for each in match.passes
    ] == expected
    assert match.stored == match.now
    assert match.stored is not None
    method, outcome, _, candidates, _ = expected[-1]
    if outcome == "matched":
        assert (match.stored.status, match.stored.method) == ("matched", method)
        assert match.stored.contact_id is not None
        assert numbers[match.stored.contact_id] in [number for number, state, _ in candidates if state == "free"]
    else:
        status = "ambiguous" if outcome == "ambiguous" else "unmatched"
        assert (match.stored.status, match.stored.contact_id) == (status, None)
