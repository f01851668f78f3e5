"""Tests that tables are computed exactly when their sources have changed."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.postgres.reads import check_queries as claims
from cliniko_pipeline.postgres.tables import (
    ACTIVE_PATIENTS,
    PRACTITIONERS,
    WATCHED,
)
from cliniko_pipeline.postgres.writing import derivations
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.derived_clinics import NOW, DerivedClinic


@pytest.fixture
def clinic(module_database: Database) -> DerivedClinic:
    """Return a clinic of four people with a contact each.

    Person 1 came just now, 2 comes later, 3 came at the start of the window, and 4 comes to classes.
    """
    clinic = DerivedClinic(module_database)
    for number, name in enumerate(("Ann Lee", "Bo Fam", "Cy Gross", "Di Ox"), start=1):
        first, last = name.split()
        clinic.patient(str(number), first_name=first, last_name=last)
        clinic.contact(number, name)
    clinic.upsert(PRACTITIONERS, {"id": "1", "name": "Dr Who"})
    clinic.appointment("10", "individual", NOW - timedelta(days=1), patient_id="1")
    clinic.appointment("11", "individual", NOW - timedelta(days=500), patient_id="1", did_not_arrive=True)
    clinic.appointment("20", "individual", NOW + timedelta(hours=1), patient_id="2")
    clinic.appointment("30", "individual", NOW - timedelta(days=60), patient_id="3")
    clinic.appointment("40", "group", NOW + timedelta(hours=2))
    clinic.attendee("400", "40", "4", arrived=False)
    clinic.appointment("41", "group", NOW - timedelta(days=3))
    clinic.attendee("401", "41", "4", arrived=False)
    assert clinic.sync()
    return clinic


def active(clinic: DerivedClinic) -> set[str]:
    """Return the ids of the active patients."""
    mapped = {row["contact_id"]: row["patient_id"] for row in clinic.rows("cliniko.contact_mapping")}
    return {mapped[row["contact_id"]] for row in clinic.rows("public.active_patients")}


def test_active_patients_follow_the_instant(clinic: DerivedClinic) -> None:
    assert active(clinic) == {"1", "3", "4"}
    # The instant may also go back.
    for hours, expected in ((1, {"1", "2", "4"}), (24 * 58, {"1", "2", "4"}), (24 * 61, set()), (0, {"1", "3", "4"})):
        clinic.as_of = NOW + timedelta(hours=hours)
        assert not clinic.sync()
        assert active(clinic) == expected, hours


def untimed_states(clinic: DerivedClinic) -> list[dict[str, Any]]:
    """Return the states of the tables without the instant of the active patients."""
    return [{**row, "as_of": None} for row in clinic.rows("cliniko.table_states")]


def test_unchanged_rows_get_only_the_new_instant(clinic: DerivedClinic) -> None:
    clinic.as_of = NOW + timedelta(seconds=1)
    assert not clinic.sync()
    before, states = clinic.rows(ACTIVE_PATIENTS.qualified), untimed_states(clinic)
    clinic.as_of = NOW + timedelta(seconds=10)
    assert not clinic.sync()
    after = clinic.rows(ACTIVE_PATIENTS.qualified)
    changed = {column for old, new in zip(before, after, strict=True) for column in old if old[column] != new[column]}
    assert changed == {"search_date_from", "search_date_to", "updated_at"}
    assert untimed_states(clinic) == states


OWN = "where organization_id = :organization_id and"
SWAP = "update public.contacts set name = case name when 'Ann Lee' then 'Bo Fam' else 'Ann Lee' end"


@pytest.mark.parametrize(
    "change",
    [
        "update cliniko.patients set first_name = 'Zoe' where id = '1'",
        "delete from cliniko.contact_mapping where patient_id = '1'",
        f"update public.contacts set name = 'Somebody Else' {OWN} name = 'Ann Lee'",
        f"update public.contacts set first_name = name, name = null {OWN} name = 'Ann Lee'",
        f"update public.contacts set organization_id = 'another' {OWN} name = 'Ann Lee'",
        f"{SWAP} {OWN} name in ('Ann Lee', 'Bo Fam')",
        "insert into public.contacts (organization_id, name) values (:organization_id, 'Zoe')",
        f"delete from public.contacts {OWN} name = 'Ann Lee'",
    ],
)
def test_change_is_computed_once(clinic: DerivedClinic, change: str) -> None:
    clinic.execute(change)
    assert [clinic.sync(), clinic.sync()] == [True, False]


def test_equal_contents_are_no_change(clinic: DerivedClinic) -> None:
    """A patient that is read again, an unused column and rows of another organization cause no computation."""
    clinic.patient("1", first_name="Ann", last_name="Lee")
    clinic.execute("update public.contacts set phone = '555', updated_at = now()")
    other = DerivedClinic(clinic.database)
    other.patient("1")
    other.contact(1, "Ann Lee")
    assert [other.sync(), other.sync()] == [True, False]
    assert not clinic.sync()


def test_practitioner_names_are_looked_up_each_time(clinic: DerivedClinic) -> None:
    clinic.upsert(PRACTITIONERS, {"id": "1", "name": "Dr No", "updated_at": NOW})
    assert not clinic.sync()
    rows = clinic.rows(ACTIVE_PATIENTS.qualified)
    assert {each["practitioner"] for row in rows for each in row["recent_appointments"]} == {"Dr No"}


def test_foreign_changes_of_active_patients_are_repaired(clinic: DerivedClinic) -> None:
    for change in (
        "update public.active_patients set total_appointment_count = 99",
        "update public.active_patients set contact_id = gen_random_uuid()",
        "delete from public.active_patients",
    ):
        clinic.execute(change)
        assert not clinic.sync()


def test_another_release_computes_again(clinic: DerivedClinic) -> None:
    with clinic.database.organization(clinic.id) as connection:
        changed = replace(clinic.mapping(), query=sql("transforms/contact_mapping") + "\n-- new\n")
        assert derivations.write(connection, changed, force=False)
    assert [clinic.sync(), clinic.sync()] == [True, False]
    comment = "comment on schema cliniko is '{}'"
    with clinic.database.operator() as connection:
        version = connection.execute(
            sa.text("select obj_description('cliniko'::regnamespace, 'pg_namespace')")
        ).scalar_one()
    administer(clinic.database.url, comment.format("other functions"))
    try:
        assert clinic.sync()
    finally:
        administer(clinic.database.url, comment.format(version))


ARCHIVED = "update cliniko.patients set archived_at = now() where id = '1'"


@pytest.mark.parametrize(
    "statements",
    [
        (
            "alter table cliniko.patients disable trigger all",
            ARCHIVED,
            "alter table cliniko.patients enable trigger all",
        ),
        (
            "create temporary table kept as table cliniko.patients",
            "alter table cliniko.patients disable trigger all",
            "truncate cliniko.patients",
            "insert into cliniko.patients select * from kept where id <> '1'",
            "alter table cliniko.patients enable trigger all",
        ),
        ("truncate cliniko.patients",),
        ("drop trigger note_update on cliniko.patients", ARCHIVED),
    ],
    ids=["triggers off", "restored", "truncated", "a trigger dropped"],
)
def test_changes_without_triggers_are_noticed(clinic: DerivedClinic, statements: tuple[str, ...]) -> None:
    try:
        administer(clinic.database.url, *statements)
        assert clinic.derive()
        with clinic.database.organization(clinic.id) as connection:
            for table in WATCHED:
                derivations.row_count(connection, table.schema, table.name, force=True)
        clinic.sync()
    finally:
        administer(clinic.database.url, *sql("isolation/watch").format(table="cliniko.patients").split(";")[:-1])


def test_unknown_version_is_computed(clinic: DerivedClinic) -> None:
    for change in ("update cliniko.table_states set computed_from = null", "delete from cliniko.table_states"):
        clinic.execute(change)
        assert [clinic.sync(), clinic.sync()] == [True, False]


def test_removed_organization_returns_as_a_new_one(clinic: DerivedClinic) -> None:
    organizations.delete_tenant_rows(clinic.database, clinic.id)
    assert clinic.rows("cliniko.table_states") == []
    clinic.patient("1")
    assert clinic.sync()


def test_rolled_back_computation_does_not_count(clinic: DerivedClinic) -> None:
    clinic.contact(1, "Bo Fam")
    with clinic.database.organization(clinic.id) as connection:
        assert derivations.write(connection, clinic.mapping(), force=False)
        connection.rollback()
    assert clinic.sync()


def test_change_during_a_computation_is_computed_next(clinic: DerivedClinic) -> None:
    clinic.patient("1", first_name="Zoe")
    with clinic.database.organization(clinic.id) as late:
        # The change was begun before the computation, but is visible only after it.
        late.execute(sa.text(f"{ARCHIVED} and first_name = 'Zoe'"))
        assert clinic.derive()
    assert clinic.sync()


def test_rows_from_before_the_first_count_are_counted(clinic: DerivedClinic) -> None:
    clinic.execute("delete from cliniko.table_states")
    clinic.appointment("50", "individual", NOW, patient_id="2")
    with clinic.database.organization(clinic.id) as connection:
        assert derivations.row_count(connection, "cliniko", "appointments") == 7
        assert derivations.row_count(connection, "cliniko", "practitioners") == 1


def test_rows_moved_by_hand_are_counted_in_both_organizations(module_database: Database) -> None:
    mine, theirs = DerivedClinic(module_database), DerivedClinic(module_database)
    for clinic in (mine, theirs):
        clinic.patient("1")
        clinic.patient("2")
        clinic.sync()
    moved = "update cliniko.patients set organization_id = :to, id = '9' where organization_id = :of and id = '1'"
    with module_database.operator() as connection:
        connection.execute(sa.text(moved), {"of": mine.id, "to": theirs.id})
    assert [mine.sync(), theirs.sync()] == [True, True]


# What the asset checks ask (claims.py). --------------------------------------------------------------------------


def test_mapping_counts_are_kept_for_the_same_rows(clinic: DerivedClinic) -> None:
    def counted(*, full: bool = False) -> tuple[int, bool]:
        with clinic.database.organization(clinic.id) as connection:
            counts, is_kept = claims.mapping_counts(connection, force=full)
            return counts.matched, is_kept

    assert [counted(), counted(), counted(full=True), counted()] == [(4, False), (4, True), (4, False), (4, True)]
    clinic.patient("5", first_name="Nobody")
    assert counted() == (4, False), "which people are current depends on the patients"
    clinic.contact(1, "Somebody Else")
    clinic.sync()
    assert [counted(), counted()] == [(3, False), (3, True)]
