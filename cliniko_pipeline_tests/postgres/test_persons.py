"""`cliniko.persons()`: merges followed to their ends, against a plain walk."""

from collections.abc import Mapping

import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cliniko_pipeline.postgres.engine import Database

# Short and long ids: as texts, "9" comes after "10" and after an id of 19 digits.
IDS = ["1", "2", "9", "10", "11", "99", "100", "1009", "999999999999999999", "1000000000000000000"]
ABSENT = ["5", "77777777777777777777"]


def walked(merged_into: Mapping[str, str | None]) -> dict[str, tuple[str, bool]]:
    """The person of each patient, and whether its way ends in a loop."""
    persons: dict[str, tuple[str, bool]] = {}
    for patient in merged_into:
        way = {patient: 0}  # in order
        here = patient
        while (target := merged_into.get(here)) is not None and target not in way:
            way[target] = len(way)
            here = target
        if target is None:
            persons[patient] = (here, False)
        else:
            persons[patient] = (min(list(way)[way[target] :], key=int), True)
    return persons


def persons(database: Database, merged_into: Mapping[str, str | None]) -> dict[str, tuple[str, bool]]:
    with database.organization("a") as connection:
        connection.execute(sa.text("delete from cliniko.patients"))
        connection.execute(
            sa.text(
                "insert into cliniko.patients (organization_id, id, merged_into_id, created_at, updated_at)"
                " select 'a', id, target, now(), now() from unnest(cast(:ids as text[]), cast(:targets as text[]))"
                " as t (id, target)"
            ),
            {"ids": list(merged_into), "targets": list(merged_into.values())},
        )
        rows = connection.execute(sa.text("select patient_id, person_id, in_loop from cliniko.persons()")).all()
    found = {row.patient_id: (row.person_id, row.in_loop) for row in rows}
    assert len(found) == len(rows), "a patient that is two persons"
    return found


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(IDS), st.none() | st.sampled_from(IDS + ABSENT)))
@example({"1": "1"})
@example({"10": "9", "9": "10", "2": "10", "11": "2"})
@example({"1": "5", "5": "1", "9": "77"})
def test_every_patient_is_the_person_at_the_end_of_its_merges(
    module_database: Database, merged_into: dict[str, str | None]
) -> None:
    assert persons(module_database, merged_into) == walked(merged_into)


@pytest.mark.parametrize(
    "last",
    ["", "absent", "2000", "1", "1000"],
    ids=["to a person", "to nobody", "to itself", "into a loop of all", "into a loop of half"],
)
def test_a_chain_of_two_thousand_merges_is_followed(module_database: Database, last: str) -> None:
    merged_into: dict[str, str | None] = {str(number): str(number + 1) for number in range(1, 2000)}
    merged_into["2000"] = {"": None, "absent": "123456"}.get(last, last)
    assert persons(module_database, merged_into) == walked(merged_into)


def test_two_thousand_patients_merged_into_one_are_one_person(module_database: Database) -> None:
    merged_into: dict[str, str | None] = {str(number): "1" for number in range(2, 2002)}
    merged_into["1"] = None
    assert set(persons(module_database, merged_into).values()) == {("1", False)}


def test_many_patients_beside_long_chains_are_settled(module_database: Database) -> None:
    # A chain's length must not multiply with the number of patients.
    merged_into: dict[str, str | None] = {str(number): None for number in range(10_000, 40_000)}
    merged_into |= {str(number): str(number + 1) for number in range(1, 500)} | {"500": None}
    found = persons(module_database, merged_into)
    assert found["1"] == ("500", False)
    assert len(found) == 30_500
