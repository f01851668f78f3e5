"""The contact mapping: its passes by id, by e-mail and by name, as stored and as explained."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.explanations import Pass
from cliniko_pipeline_tests.support.hostile_accounts import WireRecord, contact, patient
from cliniko_pipeline_tests.support.stored_clinics import AS_OF, EMAIL, ENDED, StoredClinic

# The pass, its outcome, the reason, the candidates (contact, state, patient) and other patients with the same key.
ExplainedPass = tuple[str, str, str, list[tuple[int, str, str | None]], list[str]]
NO_ID: ExplainedPass = ("cliniko_patient_id", "no_candidate", "no_contact", [], [])
NO_EMAIL: ExplainedPass = ("email", "no_candidate", "no_key", [], [])


@pytest.fixture
def clinic(module_database: Database) -> StoredClinic:
    return StoredClinic(module_database)


@pytest.mark.parametrize(
    ("patients", "contacts", "expected"),
    [
        pytest.param(
            [patient("1")],
            [contact(1, cliniko_patient_id=" 1 ")],
            [("cliniko_patient_id", "matched", "only_pair", [(1, "free", "1")], [])],
            id="named",
        ),
        pytest.param(
            [patient("1"), patient("2", merged_into="1")],
            [contact(1, cliniko_patient_id="2")],
            [("cliniko_patient_id", "matched", "only_pair", [(1, "free", "2")], [])],
            id="named by a merged id",
        ),
        pytest.param(
            [patient("1", "Ann")],
            [contact(1, cliniko_patient_id="1", name="Bo"), contact(2, cliniko_patient_id="1", name="ANN")],
            [("cliniko_patient_id", "matched", "equal_names", [(1, "free", "1"), (2, "free", "1")], [])],
            id="named twice, once by name too",
        ),
        pytest.param(
            [patient("1", "Ann")],
            [contact(1, cliniko_patient_id="1", name="Bo"), contact(2, cliniko_patient_id="1", name="Cy")],
            [("cliniko_patient_id", "ambiguous", "several", [(1, "free", "1"), (2, "free", "1")], [])],
            id="named twice",
        ),
    ],
)
def test_id_pass_of_the_mapping(
    clinic: StoredClinic, patients: list[WireRecord], contacts: list[dict[str, Any]], expected: list[ExplainedPass]
) -> None:
    assert_passes(clinic, patients, contacts, expected)


@pytest.mark.parametrize(
    ("patients", "contacts", "expected"),
    [
        pytest.param(
            [patient("1", "Ann", email=EMAIL, archived_at=ENDED)],
            [contact(1, name="Ann", email=EMAIL)],
            [
                NO_ID,
                ("email", "not_taken", "not_current", [], []),
                ("name", "not_taken", "not_current", [], []),
            ],
            id="archived",
        ),
        pytest.param(
            [patient("1", "Ann", email=EMAIL)],
            [contact(1, name="Bo", email=EMAIL.upper())],
            [NO_ID, ("email", "matched", "only_pair", [(1, "free", None)], [])],
            id="same e-mail",
        ),
        pytest.param(
            [patient("1", "Ann", email=EMAIL), patient("2", "Bo", email=EMAIL)],
            [contact(1, name="Ann", email=EMAIL), contact(2, name="Cy", email=EMAIL)],
            [NO_ID, ("email", "matched", "equal_names", [(1, "free", None), (2, "free", None)], ["2"])],
            id="a family",
        ),
        pytest.param(
            [patient("1", "Ann", email=EMAIL), patient("2", "Bo", email=EMAIL)],
            [contact(1, name="Cy", email=EMAIL)],
            [NO_ID, ("email", "ambiguous", "several", [(1, "free", None)], ["2"])],
            id="an e-mail of two patients",
        ),
        pytest.param(
            [patient("1", "Ann", email=EMAIL)],
            [contact(1, name="Cy", email=EMAIL), contact(2, name="Di", email=EMAIL)],
            [NO_ID, ("email", "ambiguous", "several", [(1, "free", None), (2, "free", None)], [])],
            id="an e-mail of two contacts",
        ),
        pytest.param(
            [patient("1", "Ann", email=EMAIL), patient("2", "Bo", email=EMAIL)],
            [contact(1, name="Bo", email=EMAIL), contact(2, name="Cy", email=EMAIL)],
            [NO_ID, ("email", "ambiguous", "several", [(1, "taken", "2"), (2, "free", None)], ["2"])],
            id="an e-mail of a family, one of whom is found",
        ),
        pytest.param(
            [patient("1", "Ann", email=EMAIL), patient("77", "Ann", email=EMAIL)],
            [contact(1, name="Ann", email=EMAIL, cliniko_patient_id="77")],
            [
                NO_ID,
                ("email", "no_candidate", "none_free", [(1, "names_another", "77")], []),
                ("name", "no_candidate", "none_free", [(1, "names_another", "77")], []),
            ],
            id="a contact that names another",
        ),
        pytest.param(
            [patient("1", "Ann", email=EMAIL)],
            [contact(1, name="Bo", email="bo@clinic.example")],
            [
                NO_ID,
                ("email", "no_candidate", "no_contact", [], []),
                ("name", "no_candidate", "no_contact", [], []),
            ],
            id="no contact",
        ),
    ],
)
def test_email_pass_of_the_mapping(
    clinic: StoredClinic, patients: list[WireRecord], contacts: list[dict[str, Any]], expected: list[ExplainedPass]
) -> None:
    assert_passes(clinic, patients, contacts, expected)


@pytest.mark.parametrize(
    ("patients", "contacts", "expected"),
    [
        pytest.param(
            [patient("1", "Ann", email=EMAIL), patient("2", "Bo", email=EMAIL)],
            [contact(1, name="Bo", email=EMAIL), contact(2, name="Ann")],
            [
                NO_ID,
                ("email", "no_candidate", "none_free", [(1, "taken", "2")], ["2"]),
                ("name", "matched", "only_pair", [(2, "free", None)], []),
            ],
            id="a contact taken by another of the family",
        ),
        pytest.param(
            [patient("1", "Ann"), patient("2", "Bo", email=EMAIL)],
            [contact(1, name="Ann", email=EMAIL)],
            [NO_ID, NO_EMAIL, ("name", "no_candidate", "none_free", [(1, "taken", "2")], [])],
            id="a contact of the name taken by e-mail",
        ),
        pytest.param(
            [patient("1", "Ann"), patient("2", "Ann", archived_at=ENDED), patient("3", "ann"), patient("4", "Ann")],
            [contact(1, name="Ann"), contact(4, cliniko_patient_id="4")],
            [NO_ID, NO_EMAIL, ("name", "ambiguous", "several", [(1, "free", None)], ["3"])],
            id="a name of two patients",
        ),
        pytest.param(
            [patient("1", "Ann")],
            [contact(1, name="Ann"), contact(2, name=" ", first_name="ANN")],
            [
                NO_ID,
                NO_EMAIL,
                ("name", "ambiguous", "several", [(1, "free", None), (2, "free", None)], []),
            ],
            id="a name of two contacts",
        ),
        pytest.param(
            [patient("1", " ", email=" ")],
            [contact(1, name="", email="")],
            [NO_ID, NO_EMAIL, ("name", "no_candidate", "no_key", [], [])],
            id="neither e-mail nor name",
        ),
    ],
)
def test_name_pass_of_the_mapping(
    clinic: StoredClinic, patients: list[WireRecord], contacts: list[dict[str, Any]], expected: list[ExplainedPass]
) -> None:
    assert_passes(clinic, patients, contacts, expected)


def test_changed_contact_shows_in_the_next_mapping(clinic: StoredClinic) -> None:
    clinic.store(patients=[patient("1", "Ann", "Lee")])
    clinic.add_contacts(contact(1, cliniko_patient_id="1"))
    clinic.compute()
    with clinic.database.operator() as connection:
        connection.execute(
            sa.text("update public.contacts set cliniko_patient_id = null, name = 'Ann Lee' where id = :id"),
            {"id": clinic.contact_id(1)},
        )
    match = clinic.explain("1", AS_OF).match
    assert match.stored is not None
    assert match.now is not None
    assert (match.stored.method, match.now.method) == ("cliniko_patient_id", "name")


def assert_passes(
    clinic: StoredClinic,
    patients: list[WireRecord],
    contacts: list[dict[str, Any]],
    expected: list[ExplainedPass],
) -> None:
    """Fail unless patient 1 is matched by these passes, and the stored row has the outcome of the last one."""
    clinic.store(patients=patients)
    clinic.add_contacts(*contacts)
    clinic.compute()
    match = clinic.explain("1", AS_OF).match
    numbers = {clinic.contact_id(number): number for number in range(1, 10)}
    assert [_explained(each, numbers) for each in match.passes] == expected
    assert match.stored == match.now
    with clinic.database.organization(clinic.id) as connection:
        stored = connection.execute(
            sa.text("select status, method, contact_id from cliniko.contact_mapping where patient_id = '1'")
        ).one()
    method, outcome, _, candidates, _ = expected[-1]
    if outcome == "matched":
        assert (stored.status, stored.method) == ("matched", method)
        assert numbers[stored.contact_id] in [number for number, state, _ in candidates if state == "free"]
    else:
        assert (stored.status, stored.contact_id) == ("ambiguous" if outcome == "ambiguous" else "unmatched", None)


def _explained(each: Pass, numbers: Mapping[UUID, int]) -> ExplainedPass:
    candidates = sorted((numbers[one.id], one.state, one.patient_id) for one in each.candidates)
    return each.method, each.outcome, each.reason, candidates, list(each.other_patient_ids)
