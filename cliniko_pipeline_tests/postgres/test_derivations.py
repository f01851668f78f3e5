"""Tables are computed when what they are computed from has changed, and only then."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from cliniko_pipeline.postgres import claims, derivations, organizations
from cliniko_pipeline.postgres.derivations import Derivation
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.tables import (
    ACTIVE_PATIENTS,
    CURRENT_ATTENDANCES,
    PRACTITIONERS,
    WATCHED,
)
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.derived_clinics import NOW, DerivedClinic

# What a sync computed: the mapping, the attendances.
NOTHING = [False, False]
ATTENDANCES = [False, True]
EVERYTHING = [True, True]
# The attendances are kept from the first time on that nothing has changed.
FIRST_UNCHANGED = ATTENDANCES


@pytest.fixture
def clinic(module_database: Database) -> DerivedClinic:
    """Four people with a contact each: 1 came just now, 2 comes later, 3 came when the window began, 4 to classes."""
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
    assert clinic.sync() == EVERYTHING
    assert clinic.sync() == FIRST_UNCHANGED
    return clinic


def active(clinic: DerivedClinic) -> set[str]:
    """The ids of the active patients."""
    mapped = {row["contact_id"]: row["patient_id"] for row in clinic.rows("cliniko.contact_mapping")}
    return {mapped[row["contact_id"]] for row in clinic.rows("public.active_patients")}


def test_passing_time_needs_no_computation(clinic: DerivedClinic) -> None:
    assert active(clinic) == {"1", "3", "4"}
    for hours, expected in ((1, {"1", "2", "4"}), (24 * 58, {"1", "2", "4"}), (24 * 61, set())):
        clinic.as_of = NOW + timedelta(hours=hours)
        assert clinic.sync() == NOTHING
        assert active(clinic) == expected, hours


def test_earlier_instant_is_computed(clinic: DerivedClinic) -> None:
    clinic.as_of = NOW + timedelta(days=70)
    assert clinic.sync(full=True) == EVERYTHING
    assert active(clinic) == set()
    clinic.as_of = NOW + timedelta(days=69)
    assert clinic.sync() == ATTENDANCES
    clinic.as_of = NOW
    assert clinic.sync() == ATTENDANCES
    assert active(clinic) == {"1", "3", "4"}
    # A change that is computed for a later instant keeps no attendances.
    clinic.as_of = NOW + timedelta(days=70)
    clinic.patient("5")
    assert clinic.sync() == EVERYTHING
    clinic.as_of = NOW
    assert clinic.sync() == FIRST_UNCHANGED
    # What was kept for an earlier instant serves for all later ones, in any order.
    for hours in (20, 1):
        clinic.as_of = NOW + timedelta(hours=hours)
        assert clinic.sync() == NOTHING


def test_unchanged_rows_get_only_the_new_instant(clinic: DerivedClinic) -> None:
    clinic.as_of = NOW + timedelta(seconds=1)
    assert clinic.sync() == NOTHING
    before, states = clinic.rows(ACTIVE_PATIENTS.qualified), clinic.rows("cliniko.table_states")
    clinic.as_of = NOW + timedelta(seconds=10)
    assert clinic.sync() == NOTHING
    after = clinic.rows(ACTIVE_PATIENTS.qualified)
    changed = {column for old, new in zip(before, after, strict=True) for column in old if old[column] != new[column]}
    assert changed == {"search_date_from", "search_date_to", "updated_at"}
    assert clinic.rows("cliniko.table_states") == states


OWN = "where organization_id = :organization_id and"
SWAP = "update public.contacts set name = case name when 'Ann Lee' then 'Bo Fam' else 'Ann Lee' end"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("update cliniko.patients set first_name = 'Zoe' where id = '1'", EVERYTHING),
        ("update cliniko.appointments set cancelled_at = now() where id = '10'", ATTENDANCES),
        ("delete from cliniko.appointments", ATTENDANCES),
        ("update cliniko.attendees set cancelled_at = now() where id = '400'", ATTENDANCES),
        ("delete from cliniko.contact_mapping where patient_id = '1'", EVERYTHING),
        (f"update public.contacts set name = 'Somebody Else' {OWN} name = 'Ann Lee'", EVERYTHING),
        (f"update public.contacts set first_name = name, name = null {OWN} name = 'Ann Lee'", EVERYTHING),
        (f"update public.contacts set organization_id = 'another' {OWN} name = 'Ann Lee'", EVERYTHING),
        (f"{SWAP} {OWN} name in ('Ann Lee', 'Bo Fam')", EVERYTHING),
        ("insert into public.contacts (organization_id, name) values (:organization_id, 'Zoe')", EVERYTHING),
        (f"delete from public.contacts {OWN} name = 'Ann Lee'", EVERYTHING),
    ],
)
def test_change_is_computed_once(clinic: DerivedClinic, change: str, expected: list[bool]) -> None:
    clinic.execute(change)
    assert [clinic.sync() for _ in range(3)] == [expected, FIRST_UNCHANGED, NOTHING]


def test_changed_setting_or_kept_row_is_computed_once(clinic: DerivedClinic) -> None:
    for setting, value in (("window", timedelta(days=30)), ("count_no_shows", False)):
        setattr(clinic, setting, value)
        assert [clinic.sync() for _ in range(3)] == [ATTENDANCES, FIRST_UNCHANGED, NOTHING]
    clinic.execute("update cliniko.current_attendances set attendances = 7")
    assert [clinic.sync() for _ in range(2)] == [ATTENDANCES, NOTHING]


def test_attendances_are_not_kept_while_each_sync_has_changes(clinic: DerivedClinic) -> None:
    kept = clinic.rows(CURRENT_ATTENDANCES.qualified)
    for day in range(2):
        clinic.appointment("50", "individual", NOW - timedelta(days=day), patient_id="2")
        assert clinic.sync() == ATTENDANCES
        assert clinic.rows(CURRENT_ATTENDANCES.qualified) == kept
        # The attendances are outdated: no recount starts at them.
        for _ in range(2):
            with clinic.database.organization(clinic.id) as connection:
                recount, is_short = claims.recount_active_patients(connection, clinic.parameters, anew=False)
            assert (recount.agrees, is_short) == (True, False)
    assert clinic.sync() == FIRST_UNCHANGED
    assert clinic.rows(CURRENT_ATTENDANCES.qualified) != kept
    assert clinic.sync() == NOTHING


def test_equal_contents_are_no_change(clinic: DerivedClinic) -> None:
    """A patient read again, a column that nothing is computed from, another organization's rows."""
    clinic.patient("1", first_name="Ann", last_name="Lee")
    clinic.execute("update public.contacts set phone = '555', updated_at = now()")
    other = DerivedClinic(clinic.database)
    other.patient("1")
    other.contact(1, "Ann Lee")
    assert [other.sync(), other.sync()] == [EVERYTHING, FIRST_UNCHANGED]
    assert clinic.sync() == NOTHING


def test_practitioner_names_are_looked_up_each_time(clinic: DerivedClinic) -> None:
    clinic.upsert(PRACTITIONERS, {"id": "1", "name": "Dr No", "updated_at": NOW})
    assert clinic.sync() == NOTHING
    rows = clinic.rows(ACTIVE_PATIENTS.qualified)
    assert {each["practitioner"] for row in rows for each in row["recent_appointments"]} == {"Dr No"}


def test_foreign_changes_of_active_patients_are_repaired(clinic: DerivedClinic) -> None:
    for change in (
        "update public.active_patients set total_appointment_count = 99",
        "update public.active_patients set contact_id = gen_random_uuid()",
        "delete from public.active_patients",
    ):
        clinic.execute(change)
        assert clinic.sync() == NOTHING


def test_another_release_computes_again(clinic: DerivedClinic, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(name: str) -> str:
        return sql(name) + ("\n-- new\n" if name == "current_attendances" else "")

    with monkeypatch.context() as patch:
        patch.setattr(derivations, "sql", changed)
        assert clinic.derive(clinic.active())
    assert [clinic.derive(clinic.active()) for _ in range(2)] == [True, False]
    comment = "comment on schema cliniko is '{}'"
    with clinic.database.operator() as connection:
        version = connection.execute(
            sa.text("select obj_description('cliniko'::regnamespace, 'pg_namespace')")
        ).scalar_one()
    administer(clinic.database.url, comment.format("other functions"))
    try:
        assert clinic.sync() == EVERYTHING
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
            "create temporary table kept as table cliniko.appointments",
            "alter table cliniko.appointments disable trigger all",
            "truncate cliniko.appointments",
            "insert into cliniko.appointments select * from kept where id <> '10'",
            "alter table cliniko.appointments enable trigger all",
        ),
        ("truncate cliniko.appointments",),
        ("drop trigger note_update on cliniko.patients", ARCHIVED),
    ],
    ids=["triggers off", "restored", "truncated", "a trigger dropped"],
)
def test_changes_without_triggers_are_noticed(clinic: DerivedClinic, statements: tuple[str, ...]) -> None:
    try:
        administer(clinic.database.url, *statements)
        assert clinic.derive(clinic.mapping()) + clinic.derive(clinic.active())
        with clinic.database.organization(clinic.id) as connection:
            for table in WATCHED:
                derivations.row_count(connection, table.schema, table.name, anew=True)
        clinic.check()
    finally:
        administer(clinic.database.url, *sql("watch").format(table="cliniko.patients").split(";")[:-1])


def test_unknown_version_is_computed(clinic: DerivedClinic) -> None:
    for column in ("computed_from", "as_of"):
        clinic.execute(f"update cliniko.table_states set {column} = null")
        assert clinic.sync()[1], column
        clinic.sync()
        assert clinic.sync() == NOTHING
    clinic.execute("delete from cliniko.table_states")
    assert [clinic.sync() for _ in range(3)] == [EVERYTHING, FIRST_UNCHANGED, NOTHING]


def test_removed_organization_returns_as_a_new_one(clinic: DerivedClinic) -> None:
    organizations.delete_tenant_rows(clinic.database, clinic.id)
    assert clinic.rows("cliniko.table_states") == []
    clinic.patient("1")
    assert clinic.sync() == EVERYTHING


def test_rolled_back_computation_does_not_count(clinic: DerivedClinic) -> None:
    clinic.appointment("10", "individual", NOW, patient_id="1", cancelled_at=NOW)
    clinic.contact(1, "Bo Fam")

    def roll_back(derivation: Derivation) -> None:
        with clinic.database.organization(clinic.id) as connection:
            assert derivations.write(connection, derivation, anew=False)[1]
            connection.rollback()

    roll_back(clinic.mapping())
    roll_back(clinic.active())
    assert clinic.derive(clinic.mapping())
    roll_back(clinic.active())
    assert clinic.sync() == ATTENDANCES


def test_change_during_a_computation_is_computed_next(clinic: DerivedClinic) -> None:
    clinic.patient("1", first_name="Zoe")
    with clinic.database.organization(clinic.id) as late:
        # Begun before the computation, visible only after it.
        late.execute(sa.text(f"{ARCHIVED} and first_name = 'Zoe'"))
        assert clinic.derive(clinic.mapping())
    assert clinic.sync() == EVERYTHING


def test_contact_changed_between_the_steps_is_computed_next(clinic: DerivedClinic) -> None:
    clinic.patient("1", first_name="Zoe")
    assert clinic.derive(clinic.mapping())
    clinic.execute(f"delete from public.contacts {OWN} name = 'Cy Gross'")
    assert clinic.derive(clinic.active())
    assert clinic.sync() == EVERYTHING


def test_rows_from_before_the_first_count_are_counted(clinic: DerivedClinic) -> None:
    clinic.execute("delete from cliniko.table_states")
    clinic.appointment("50", "individual", NOW, patient_id="2")
    with clinic.database.organization(clinic.id) as connection:
        assert derivations.row_count(connection, "cliniko", "appointments") == 7
        assert derivations.row_count(connection, "cliniko", "practitioners") == 1


def test_rows_moved_by_hand_are_counted_in_both_organizations(module_database: Database) -> None:
    mine, theirs = DerivedClinic(module_database), DerivedClinic(module_database)
    for each in (mine, theirs):
        each.patient("1")
        each.patient("2")
        each.sync()
    moved = "update cliniko.patients set organization_id = :to, id = '9' where organization_id = :of and id = '1'"
    with module_database.operator() as connection:
        connection.execute(sa.text(moved), {"of": mine.id, "to": theirs.id})
    assert [mine.sync(), theirs.sync()] == [EVERYTHING] * 2


# What the asset checks ask (claims.py). --------------------------------------------------------------------------


def test_mapping_counts_are_kept_for_the_same_rows(clinic: DerivedClinic) -> None:
    def counted(*, full: bool = False) -> tuple[int, bool]:
        with clinic.database.organization(clinic.id) as connection:
            counts, is_kept = claims.mapping_counts(connection, anew=full)
            return counts.matched, is_kept

    assert [counted(), counted(), counted(full=True), counted()] == [(4, False), (4, True), (4, False), (4, True)]
    clinic.patient("5", first_name="Nobody")
    assert counted() == (4, False), "which people are current depends on the patients"
    clinic.contact(1, "Somebody Else")
    clinic.sync()
    assert [counted(), counted()] == [(3, False), (3, True)]


def test_recount_starts_at_appointments_after_changes(clinic: DerivedClinic) -> None:
    def recounted(*, full: bool = False) -> tuple[bool, bool]:
        with clinic.database.organization(clinic.id) as connection:
            found, is_kept = claims.recount_active_patients(connection, clinic.parameters, anew=full)
            return found.agrees, is_kept

    assert [recounted(), recounted()] == [(True, False), (True, True)]
    clinic.as_of = NOW + timedelta(hours=3)
    clinic.sync()
    assert [recounted(), recounted(full=True), recounted()] == [(True, True), (True, False), (True, True)]
    # The short recount misses a deleted row, too.
    clinic.execute("delete from public.active_patients where recent_appointment_count >= 1")
    assert recounted() == (False, True)
    clinic.sync()
    clinic.execute("update cliniko.appointments set cancelled_at = now()")
    assert [recounted(), recounted()] == [(False, False), (False, False)], "a failed recount is not kept"


def test_recount_of_attendances_finds_lost_and_extra_rows(clinic: DerivedClinic) -> None:
    def recounted() -> claims.AttendancesRecount | None:
        with clinic.database.organization(clinic.id) as connection:
            return claims.recount_attendances(connection, clinic.parameters)

    assert recounted() == claims.AttendancesRecount(missing=0, surplus=0)
    clinic.execute("delete from cliniko.current_attendances where id = '20'")
    assert recounted() == claims.AttendancesRecount(missing=1, surplus=0)
    clinic.execute("update cliniko.current_attendances set id = '77' where id = '10'")
    assert recounted() == claims.AttendancesRecount(missing=2, surplus=1)
    clinic.patient("5")
    assert recounted() is None, "the kept attendances are outdated"
