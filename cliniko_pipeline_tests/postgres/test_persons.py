"""Tests of `cliniko.persons()`, which follows merges to their ends, against a simple loop."""

from collections.abc import Mapping

import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline_tests.support.properties import examples

# As texts, short and long ids sort wrongly. "9" comes after "10" and after an id of 19 digits.
IDS = ["1", "2", "9", "10", "11", "99", "100", "1009", "999999999999999999", "1000000000000000000"]
ABSENT = ["5", "77777777777777777777"]


def walked(merged_into: Mapping[str, str | None]) -> dict[str, tuple[str, bool]]:
    """Return the person of each patient, and whether its merges end in a loop."""
    persons: dict[str, tuple[str, bool]] = {}
    for patient in merged_into:
        way = [patient]
        while (target := merged_into.get(way[-1])) is not None and target not in way:
            way.append(target)
        loop = [] if target is None else way[way.index(target) :]
        persons[patient] = (min(loop, key=int), True) if loop else (way[-1], False)
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


@settings(max_examples=examples(15, 300))
@given(st.dictionaries(st.sampled_from(IDS), st.none() | st.sampled_from(IDS + ABSENT)))
@example({"1": "1"})
@example({"10": "9", "9": "10", "2": "10", "11": "2"})
@example({"1": "5", "5": "1", "9": "77"})
def test_person_is_the_end_of_the_merges(module_database: Database, merged_into: dict[str, str | None]) -> None:
    assert persons(module_database, merged_into) == walked(merged_into)


@pytest.mark.parametrize("length", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_long_chain_of_merges_is_followed(module_database: Database, length: int) -> None:
    """The chain ends at a person, a missing patient, itself, a loop of all patients or a loop of half of them."""
    chain: dict[str, str | None] = {str(number): str(number + 1) for number in range(1, length)}
    for last, end in (
        (None, (str(length), False)),
        ("123456", ("123456", False)),
        (str(length), (str(length), True)),
        ("1", ("1", True)),
        (str(length // 2), (str(length // 2), True)),
    ):
        found = persons(module_database, chain | {str(length): last})
        assert (len(found), set(found.values())) == (length, {end})


def test_many_patients_are_followed_beside_a_long_chain(module_database: Database) -> None:
    """The work must not be the product of the number of patients and the length of the chain or of other chains."""
    merged_into: dict[str, str | None] = {str(number): None for number in range(10_000, 40_000)}
    merged_into |= {str(number): str(number + 1) for number in range(1, 500)} | {"500": None}
    merged_into |= dict.fromkeys(map(str, range(2_000, 4_000)), "10000")
    found = persons(module_database, merged_into)
    assert len(found) == 32_500
    assert found["1"] == ("500", False)
    assert {found[str(number)] for number in range(2_000, 4_000)} == {("10000", False)}
