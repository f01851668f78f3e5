"""What is not computed again comes out as if it had been, whatever happened in between."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres import claims, derivations, organizations
from cliniko_pipeline.postgres.derivations import Derivation
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.merge import replace_by_rows, upsert
from cliniko_pipeline.postgres.tables import (
    ACTIVE_PATIENTS,
    APPOINTMENTS,
    ATTENDEES,
    CONTACT_MAPPING,
    CURRENT_ATTENDANCES,
    PATIENTS,
    PRACTITIONERS,
    WATCHED,
)
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.properties import examples

NOW = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
PEOPLE = ("1", "2", "3", "4")
# The attendances are kept from the first time on that nothing has changed.
FIRST_UNCHANGED = [False, True]
CONTACTS = tuple(UUID(int=number) for number in range(1, 6))
NAMES = ("Ann Lee", "Bo Fam", "ANN  lee", "Cy Gross", "Ann Lee ")
EMAILS = (None, "ann@example.org", " ANN@example.org", "bo@example.org")
# From the beginning: around the window's start, around now, and far from both.
STARTS = tuple(
    timedelta(**each)
    for each in (
        {"days": -60},
        {"days": -60, "seconds": 1},
        {"days": -59},
        {"days": -30, "seconds": -1},
        {"days": -7},
        {"hours": -1},
        {"seconds": 0},
        {"seconds": 1},
        {"hours": 1},
        {"days": 2},
        {"days": 30},
        {"days": -400},
    )
)


@dataclass
class Clinic:
    """An organization whose tables are written as a sync writes them, and by hand."""

    database: Database
    id: str = field(default_factory=lambda: f"clinic-{uuid4()}")
    as_of: datetime = NOW
    window: timedelta = timedelta(days=60)
    count_no_shows: bool = True
    computed: list[bool] = field(default_factory=list)

    @property
    def parameters(self) -> dict[str, object]:
        return {"as_of": self.as_of, "activity_window": self.window, "count_no_shows": self.count_no_shows}

    def mapping(self) -> Derivation:
        return Derivation(CONTACT_MAPPING, sql("contact_mapping"), (PATIENTS,), {})

    def active(self) -> Derivation:
        inputs = (PATIENTS, APPOINTMENTS, ATTENDEES, CONTACT_MAPPING)
        return Derivation(ACTIVE_PATIENTS, sql("active_patients"), inputs, self.parameters, CURRENT_ATTENDANCES)

    def derive(self, derivation: Derivation, *, anew: bool = False) -> bool:
        """Tells whether it was computed."""
        with self.database.organization(self.id) as connection:
            return derivations.write(connection, derivation, anew=anew)[1]

    def sync(self, *, anew: bool = False) -> list[bool]:
        self.computed = [self.derive(self.mapping(), anew=anew), self.derive(self.active(), anew=anew)]
        return self.computed

    def upsert(self, table: Any, *rows: tuple[object, ...]) -> None:
        with self.database.organization(self.id) as connection:
            upsert(connection, table, rows)

    def execute(self, statement: str, **values: object) -> None:
        with self.database.organization(self.id) as connection:
            connection.execute(sa.text(statement), values)

    def patient(self, number: str, **given: object) -> None:
        row = {"first_name": "Ann", "last_name": "Lee", "email": None, "created_at": LONG_AGO, "updated_at": LONG_AGO}
        row |= {"id": number, **given}
        self.upsert(PATIENTS, tuple(row.get(column) for column in PATIENTS.written))

    def appointment(self, number: str, kind: str, starts_at: datetime, **given: object) -> None:
        row = {"did_not_arrive": False, "created_at": LONG_AGO, "updated_at": LONG_AGO, "practitioner_id": "1"}
        row |= {"id": number, "kind": kind, "starts_at": starts_at, **given}
        self.upsert(APPOINTMENTS, tuple(row.get(column) for column in APPOINTMENTS.written))

    def attendee(self, number: str, booking: str, patient: str, **given: object) -> None:
        row = {"id": number, "booking_id": booking, "patient_id": patient, "created_at": LONG_AGO} | given
        row |= {"updated_at": LONG_AGO}
        self.upsert(ATTENDEES, tuple(row.get(column) for column in ATTENDEES.written))

    def contact(self, contact: UUID, **given: object) -> None:
        row = {"cliniko_patient_id": None, "name": None, "email": None} | given
        with self.database.operator() as connection:
            connection.execute(
                sa.text(
                    "insert into public.contacts (id, organization_id, cliniko_patient_id, name, email)"
                    " values (:id, :organization_id, :cliniko_patient_id, :name, :email)"
                    " on conflict (id) do update set cliniko_patient_id = excluded.cliniko_patient_id,"
                    " name = excluded.name, email = excluded.email"
                ),
                {"id": self.own(contact), "organization_id": self.id, **row},
            )

    def change_contacts(self, statement: str, **values: object) -> None:
        with self.database.operator() as connection:
            connection.execute(sa.text(statement), {"organization_id": self.id, **values})

    def own(self, contact: UUID) -> UUID:
        """The contact of this clinic: ids are unique over all of them."""
        return UUID(int=UUID(self.id.removeprefix("clinic-")).int ^ contact.int)

    def assert_as_computed_anew(self) -> None:
        """Both tables hold exactly what their queries compute from scratch."""
        with self.database.organization(self.id) as connection:
            for table, query, parameters in (
                (CONTACT_MAPPING, "contact_mapping", {}),
                (ACTIVE_PATIENTS, "active_patients", self.parameters),
            ):
                columns = ", ".join(table.written)
                stored = connection.execute(sa.text(f"select {columns} from {table.qualified}"))
                anew = connection.execute(sa.text(f"select {columns} from ({sql(query)}) as anew"), parameters)
                assert sorted(map(repr, stored)) == sorted(map(repr, anew)), table.name
            for table in WATCHED:
                counted = connection.execute(sa.text(f"select count(*) from {table.qualified}")).scalar_one()
                assert derivations.row_count(connection, table.schema, table.name) == counted, table.name


@pytest.fixture(scope="module")
def database(module_database: Database) -> Database:
    return module_database


@pytest.fixture
def clinic(database: Database) -> Clinic:
    """Four people with a contact each: one came just now, one comes later, one came when the window began, one comes to
    classes.
    """
    clinic = Clinic(database)
    for number, name in zip(PEOPLE, ("Ann Lee", "Bo Fam", "Cy Gross", "Di Ox"), strict=True):
        first, last = name.split()
        clinic.patient(number, first_name=first, last_name=last)
        clinic.contact(CONTACTS[int(number)], name=name)
    clinic.upsert(PRACTITIONERS, ("1", "Dr Who", LONG_AGO, LONG_AGO))
    clinic.appointment("10", "individual", NOW - timedelta(days=1), patient_id="1")
    clinic.appointment("11", "individual", NOW - timedelta(days=500), patient_id="1", did_not_arrive=True)
    clinic.appointment("20", "individual", NOW + timedelta(hours=1), patient_id="2")
    clinic.appointment("30", "individual", NOW - timedelta(days=60), patient_id="3")
    clinic.appointment("40", "group", NOW + timedelta(hours=2))
    clinic.attendee("400", "40", "4", arrived=False)
    clinic.appointment("41", "group", NOW - timedelta(days=3))
    clinic.attendee("401", "41", "4", arrived=False)
    assert clinic.sync() == [True, True]
    clinic.assert_as_computed_anew()
    assert clinic.sync() == FIRST_UNCHANGED
    clinic.assert_as_computed_anew()
    return clinic


def people(clinic: Clinic) -> set[str]:
    """Who is active, by the patient's id."""
    with clinic.database.organization(clinic.id) as connection:
        rows = connection.execute(
            sa.text(
                "select mapping.patient_id from public.active_patients as active"
                " inner join cliniko.contact_mapping as mapping on mapping.contact_id = active.contact_id"
            )
        )
        return set(rows.scalars())


# --- Nothing but the time ---------------------------------------------------------------------------------------


def test_passing_time_needs_no_computation(clinic: Clinic) -> None:
    assert people(clinic) == {"1", "3", "4"}
    for hours, expected in (
        (1, {"1", "2", "4"}),
        (2, {"1", "2", "4"}),
        (24 * 58, {"1", "2", "4"}),
        (24 * 61, set()),
    ):
        clinic.as_of = NOW + timedelta(hours=hours)
        assert clinic.sync() == [False, False]
        clinic.assert_as_computed_anew()
        assert people(clinic) == expected, hours


def test_an_earlier_instant_than_the_attendances_are_kept_for_is_computed(clinic: Clinic) -> None:
    clinic.as_of = NOW + timedelta(days=70)
    assert clinic.sync(anew=True) == [True, True]
    assert people(clinic) == set()
    clinic.as_of = NOW + timedelta(days=69)
    assert clinic.sync() == [False, True]
    clinic.assert_as_computed_anew()
    clinic.as_of = NOW
    assert clinic.sync() == [False, True]
    assert people(clinic) == {"1", "3", "4"}
    # Whatever changes, and is computed for a later instant, keeps nothing.
    clinic.as_of = NOW + timedelta(days=70)
    clinic.patient("5")
    assert clinic.sync() == [True, True]
    clinic.as_of = NOW
    assert clinic.sync() == FIRST_UNCHANGED
    clinic.assert_as_computed_anew()
    # What serves for an earlier instant serves for a later one, though that is before one judged by meanwhile.
    clinic.as_of = NOW + timedelta(hours=20)
    assert clinic.sync() == [False, False]
    clinic.as_of = NOW + timedelta(hours=1)
    assert clinic.sync() == [False, False]
    clinic.assert_as_computed_anew()


def test_only_the_instant_and_the_stamp_are_written_where_nobody_came_or_went(clinic: Clinic) -> None:
    clinic.as_of = NOW + timedelta(seconds=1)
    assert clinic.sync() == [False, False]
    before = _rows(clinic, ACTIVE_PATIENTS.qualified)
    states = _rows(clinic, "cliniko.table_states")
    clinic.as_of = NOW + timedelta(seconds=10)
    assert clinic.sync() == [False, False]
    after = _rows(clinic, ACTIVE_PATIENTS.qualified)
    changed = {column for old, new in zip(before, after, strict=True) for column in old if old[column] != new[column]}
    assert changed == {"search_date_from", "search_date_to", "updated_at"}
    assert _rows(clinic, "cliniko.table_states") == states


# --- Whatever changes is noticed --------------------------------------------------------------------------------


def _rows(clinic: Clinic, table: str) -> list[dict[str, Any]]:
    with clinic.database.organization(clinic.id) as connection:
        rows = connection.execute(sa.text(f"select * from {table}")).mappings()
        return sorted((dict(row) for row in rows), key=lambda row: str(row.get("id", row)))


CHANGES: dict[str, tuple[Callable[[Clinic], None], list[bool]]] = {
    "a patient": (lambda clinic: clinic.patient("1", first_name="Zoe"), [True, True]),
    "a merge": (lambda clinic: clinic.patient("1", merged_into_id="2"), [True, True]),
    "a new patient": (lambda clinic: clinic.patient("5"), [True, True]),
    "an appointment": (
        lambda clinic: clinic.appointment("10", "individual", NOW, patient_id="1", cancelled_at=NOW),
        [False, True],
    ),
    "a new appointment": (lambda clinic: clinic.appointment("50", "individual", NOW, patient_id="2"), [False, True]),
    "an attendee": (lambda clinic: clinic.attendee("400", "40", "4", cancelled_at=NOW), [False, True]),
    "a contact's name": (lambda clinic: clinic.contact(CONTACTS[1], name="Somebody Else"), [True, True]),
    "a new contact": (lambda clinic: clinic.contact(UUID(int=99), name="Somebody Else"), [True, True]),
    "a contact less": (
        lambda clinic: clinic.change_contacts("delete from public.contacts where id = :id", id=clinic.own(CONTACTS[1])),
        [True, True],
    ),
    "two contacts swapped": (
        lambda clinic: clinic.change_contacts(
            "update public.contacts set name = case name when 'Ann Lee' then 'Bo Fam' else 'Ann Lee' end"
            " where organization_id = :organization_id and name in ('Ann Lee', 'Bo Fam')"
        ),
        [True, True],
    ),
    "a contact's name between its columns": (
        lambda clinic: clinic.change_contacts(
            "update public.contacts set first_name = name, name = null where id = :id", id=clinic.own(CONTACTS[1])
        ),
        [True, True],
    ),
    "a contact of another organization": (
        lambda clinic: clinic.change_contacts(
            "update public.contacts set organization_id = 'another' where id = :id", id=clinic.own(CONTACTS[1])
        ),
        [True, True],
    ),
    "the window": (lambda clinic: setattr(clinic, "window", timedelta(days=30)), [False, True]),
    "no-shows": (lambda clinic: setattr(clinic, "count_no_shows", False), [False, True]),
    "a row of the mapping, by hand": (
        lambda clinic: clinic.execute("delete from cliniko.contact_mapping where patient_id = '1'"),
        [True, True],
    ),
    "a row that is kept, by hand": (
        lambda clinic: clinic.execute("update cliniko.current_attendances set attendances = 7"),
        [False, True],
    ),
    "a patient by hand": (
        lambda clinic: clinic.execute("update cliniko.patients set archived_at = now() where id = '1'"),
        [True, True],
    ),
    "appointments by hand": (lambda clinic: clinic.execute("delete from cliniko.appointments"), [False, True]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_computed_once(clinic: Clinic, what: str) -> None:
    change, expected = CHANGES[what]
    change(clinic)
    assert clinic.sync() == expected
    clinic.assert_as_computed_anew()
    if what != "a row that is kept, by hand":
        assert clinic.sync() == FIRST_UNCHANGED
        clinic.assert_as_computed_anew()
    assert clinic.sync() == [False, False]
    clinic.assert_as_computed_anew()


def test_while_something_changes_at_every_sync_nothing_is_kept(clinic: Clinic) -> None:
    kept = _rows(clinic, CURRENT_ATTENDANCES.qualified)
    for day in range(3):
        clinic.appointment("50", "individual", NOW - timedelta(days=day), patient_id="2")
        assert clinic.sync() == [False, True]
        clinic.assert_as_computed_anew()
        assert _rows(clinic, CURRENT_ATTENDANCES.qualified) == kept
        # What is kept is of what was there before: nothing is reckoned from it.
        for _ in range(2):
            with clinic.database.organization(clinic.id) as connection:
                recount, is_short = claims.recount_active_patients(connection, clinic.parameters, anew=False)
            assert (recount.agrees, is_short) == (True, False)
    assert clinic.sync() == FIRST_UNCHANGED
    assert _rows(clinic, CURRENT_ATTENDANCES.qualified) != kept
    assert clinic.sync() == [False, False]


def test_what_makes_no_difference_is_no_change(clinic: Clinic) -> None:
    # Read again with the same contents; a number that nothing is computed from; another clinic's rows.
    clinic.patient("1", first_name="Ann", last_name="Lee")
    clinic.change_contacts("update public.contacts set phone = '555', updated_at = now()")
    other = Clinic(clinic.database)
    other.patient("1")
    other.contact(CONTACTS[1], name="Ann Lee")
    assert other.sync() == [True, True]
    assert other.sync() == FIRST_UNCHANGED
    assert clinic.sync() == [False, False]


def test_names_of_practitioners_are_looked_up_each_time(clinic: Clinic) -> None:
    clinic.upsert(PRACTITIONERS, ("1", "Dr No", LONG_AGO, NOW))
    assert clinic.sync() == [False, False]
    clinic.assert_as_computed_anew()
    assert {
        each["practitioner"] for row in _rows(clinic, ACTIVE_PATIENTS.qualified) for each in row["recent_appointments"]
    } == {"Dr No"}


@pytest.mark.parametrize(
    "change",
    [
        "update public.active_patients set total_appointment_count = 99",
        "delete from public.active_patients",
        "update public.active_patients set contact_id = gen_random_uuid()",
    ],
)
def test_foreign_changes_of_active_patients_are_repaired(clinic: Clinic, change: str) -> None:
    clinic.execute(change)
    assert clinic.sync() == [False, False]
    clinic.assert_as_computed_anew()


def test_another_release_computes_again(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            derivations, "sql", lambda name: sql(name) + ("\n-- new\n" if name == "current_attendances" else "")
        )
        assert clinic.derive(clinic.active())
    assert clinic.derive(clinic.active())
    assert not clinic.derive(clinic.active())
    comment = "comment on schema cliniko is '{}'"
    with clinic.database.operator() as connection:
        version = connection.execute(
            sa.text("select obj_description('cliniko'::regnamespace, 'pg_namespace')")
        ).scalar_one()
    administer(clinic.database.url, comment.format("other functions"))
    try:
        assert clinic.sync() == [True, True]
    finally:
        administer(clinic.database.url, comment.format(version))


@pytest.mark.parametrize(
    "statements",
    [
        (
            "alter table cliniko.patients disable trigger all",
            "update cliniko.patients set archived_at = now() where id = '1'",
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
        (
            "drop trigger note_update on cliniko.patients",
            "update cliniko.patients set archived_at = now() where id = '1'",
        ),
    ],
    ids=["triggers off", "restored", "truncated", "a trigger dropped"],
)
def test_changes_without_triggers_are_noticed(clinic: Clinic, statements: tuple[str, ...]) -> None:
    try:
        administer(clinic.database.url, *statements)
        assert clinic.sync()[1]
        with clinic.database.organization(clinic.id) as connection:
            for table in WATCHED:
                derivations.row_count(connection, table.schema, table.name, anew=True)
        clinic.assert_as_computed_anew()
    finally:
        administer(clinic.database.url, *sql("watch").format(table="cliniko.patients").split(";")[:-1])


def test_a_version_that_is_not_known_is_none_that_is_the_same(clinic: Clinic) -> None:
    for column in ("computed_from", "as_of"):
        clinic.execute(f"update cliniko.table_states set {column} = null")
        assert clinic.sync()[1], column
        clinic.sync()
        assert clinic.sync() == [False, False]
    clinic.execute("delete from cliniko.table_states")
    assert clinic.sync() == [True, True]
    assert clinic.sync() == FIRST_UNCHANGED
    assert clinic.sync() == [False, False]
    clinic.assert_as_computed_anew()


def test_what_was_rolled_back_was_not_computed(clinic: Clinic) -> None:
    clinic.appointment("10", "individual", NOW, patient_id="1", cancelled_at=NOW)
    clinic.contact(CONTACTS[1], name="Bo Fam")

    def until_killed(derivation: Derivation) -> None:
        with clinic.database.organization(clinic.id) as connection:
            assert derivations.write(connection, derivation, anew=False)[1]
            connection.rollback()

    until_killed(clinic.mapping())
    until_killed(clinic.active())
    # The mapping is there, and the end came before anything was made of it.
    assert clinic.derive(clinic.mapping())
    until_killed(clinic.active())
    assert clinic.sync() == [False, True]
    clinic.assert_as_computed_anew()


def test_what_changes_while_it_is_computed_is_computed_the_next_time(clinic: Clinic) -> None:
    clinic.patient("1", first_name="Zoe")
    with clinic.database.organization(clinic.id) as late:
        # Begun before, seen only afterwards.
        late.execute(sa.text("update cliniko.patients set first_name = 'Ann', archived_at = now() where id = '1'"))
        with clinic.database.organization(clinic.id) as connection:
            assert derivations.write(connection, clinic.mapping(), anew=False)[1]
    assert clinic.sync() == [True, True]
    clinic.assert_as_computed_anew()


def test_a_contact_that_changes_between_the_steps_is_not_forgotten(clinic: Clinic) -> None:
    clinic.patient("1", first_name="Zoe")
    assert clinic.derive(clinic.mapping())
    clinic.change_contacts("delete from public.contacts where id = :id", id=clinic.own(CONTACTS[3]))
    assert clinic.derive(clinic.active())
    assert clinic.sync() == [True, True]
    clinic.assert_as_computed_anew()


# --- What is counted and checked --------------------------------------------------------------------------------


def test_numbers_of_the_mapping_are_counted_once_for_the_same_rows(clinic: Clinic) -> None:
    def counted(*, anew: bool = False) -> tuple[int, bool]:
        with clinic.database.organization(clinic.id) as connection:
            counts, is_kept = claims.mapping_counts(connection, anew=anew)
            return counts.matched, is_kept

    assert [counted(), counted(), counted(anew=True), counted()] == [(4, False), (4, True), (4, False), (4, True)]
    clinic.patient("5", first_name="Nobody")
    assert counted() == (4, False), "how many are current, the patients say"
    clinic.contact(CONTACTS[1], name="Somebody Else")
    clinic.sync()
    assert [counted(), counted()] == [(3, False), (3, True)]


def test_recount_starts_at_appointments_after_changes(clinic: Clinic) -> None:
    def recounted(*, anew: bool = False) -> tuple[bool, bool]:
        with clinic.database.organization(clinic.id) as connection:
            found, is_kept = claims.recount_active_patients(connection, clinic.parameters, anew=anew)
            return found.agrees, is_kept

    assert [recounted(), recounted()] == [(True, False), (True, True)]
    clinic.as_of = NOW + timedelta(hours=3)
    clinic.sync()
    assert [recounted(), recounted(anew=True), recounted()] == [(True, True), (True, False), (True, True)]
    # A row that the counting lost is missed by the short reckoning, too.
    clinic.execute("delete from public.active_patients where recent_appointment_count >= 1")
    assert recounted() == (False, True)
    clinic.sync()
    clinic.execute("update cliniko.appointments set cancelled_at = now()")
    assert [recounted(), recounted()] == [(False, False), (False, False)], "what is wrong is not believed to stay so"


def test_recount_of_attendances_finds_lost_and_extra_rows(clinic: Clinic) -> None:
    def recounted() -> claims.AttendancesRecount | None:
        with clinic.database.organization(clinic.id) as connection:
            return claims.recount_attendances(connection, clinic.parameters)

    assert recounted() == claims.AttendancesRecount(missing=0, surplus=0)
    clinic.execute("delete from cliniko.current_attendances where id = '20'")
    assert recounted() == claims.AttendancesRecount(missing=1, surplus=0)
    clinic.execute("update cliniko.current_attendances set id = '77' where id = '10'")
    assert recounted() == claims.AttendancesRecount(missing=2, surplus=1)
    clinic.patient("5")
    assert recounted() is None, "they are of what was there before"


def test_rows_that_were_there_before_anybody_counted_are_counted(clinic: Clinic) -> None:
    clinic.execute("delete from cliniko.table_states")
    clinic.appointment("50", "individual", NOW, patient_id="2")
    clinic.assert_as_computed_anew() if clinic.sync() else None
    with clinic.database.organization(clinic.id) as connection:
        assert derivations.row_count(connection, "cliniko", "appointments") == 7
        assert derivations.row_count(connection, "cliniko", "practitioners") == 1


def test_rows_moved_by_hand_are_counted_in_both_organizations(database: Database) -> None:
    mine, theirs = Clinic(database), Clinic(database)
    for each in (mine, theirs):
        each.patient("1")
        each.patient("2")
        each.sync()
        each.assert_as_computed_anew()
    with database.operator() as connection:
        connection.execute(
            sa.text(
                "update cliniko.patients set organization_id = :to, id = '9' where organization_id = :of and id = '1'"
            ),
            {"of": mine.id, "to": theirs.id},
        )
    for each in (mine, theirs):
        assert each.sync() == [True, True]
        each.assert_as_computed_anew()


def test_removed_organization_returns_as_a_new_one(clinic: Clinic) -> None:
    organizations.delete_tenant_rows(clinic.database, clinic.id)
    assert _rows(clinic, "cliniko.table_states") == []
    clinic.patient("1")
    assert clinic.sync() == [True, True]
    clinic.assert_as_computed_anew()


def test_an_operators_table_written_whole_by_hand_counts_as_changed(clinic: Clinic) -> None:
    with clinic.database.organization(clinic.id) as connection:
        replace_by_rows(connection, CONTACT_MAPPING, [])
    assert clinic.sync() == [True, True]
    clinic.assert_as_computed_anew()


# --- Contacts of any kind ---------------------------------------------------------------------------------------


def _fingerprint(connection: Connection) -> str:
    return connection.execute(sa.text("select cliniko.contacts_fingerprint()")).scalar_one()


SWAPPED = (
    "update public.contacts set name = case name when 'Ann Lee' then 'Bo Fam' else 'Ann Lee' end"
    " where organization_id = 'a'"
)
SHAPES = {
    "a view": (
        "alter table public.contacts rename to people",
        "create view public.contacts as select * from public.people",
    ),
    "without first names": ("alter table public.contacts drop column first_name",),
    "partitions": (
        "alter table public.contacts rename to people",
        "create table public.contacts (like public.people including defaults) partition by list (organization_id)",
        "create table public.others partition of public.contacts default",
        "insert into public.contacts select * from public.people",
    ),
    "numbers": ("alter table public.contacts alter cliniko_patient_id type bigint using cliniko_patient_id::bigint",),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_contacts_of_another_kind_are_told_apart_too(database_url: sa.URL, shape: str) -> None:
    administer(
        database_url,
        "insert into public.contacts (organization_id, name) values ('a', 'Ann Lee'), ('a', 'Bo Fam'), ('b', 'Cy')",
        *SHAPES[shape],
    )
    opened = Database(database_url)
    seen: list[str] = []
    for statement in (
        "select",
        SWAPPED,
        "update public.contacts set cliniko_patient_id = '7' where name = 'Ann Lee'",
        "update public.contacts set email = '' where name = 'Ann Lee'",
        "insert into public.contacts (organization_id, name) values ('a', null)",
        "delete from public.contacts where name is null",
    ):
        administer(database_url, statement)
        with opened.organization("a") as connection:
            seen.append(_fingerprint(connection))
    opened.close()
    assert len(set(seen)) == len(seen) - 1
    assert seen[-1] == seen[3], "as it was before the contact came and went"


def test_contacts_that_change_places_in_the_table_are_the_same(database_url: sa.URL) -> None:
    opened = Database(database_url)
    administer(database_url, "insert into public.contacts (organization_id, name) values ('a', 'Ann'), ('a', 'Bo')")
    seen: set[str] = set()
    for statement in (
        "select",
        "update public.contacts set phone = '5' where name = 'Ann'",
        "vacuum full public.contacts",
    ):
        administer(database_url, statement)
        with opened.organization("a") as connection:
            seen.add(_fingerprint(connection))
    with opened.organization("b") as connection:
        assert _fingerprint(connection) not in seen
    opened.close()
    assert len(seen) == 1


# --- Anything, in any order -------------------------------------------------------------------------------------

_people = st.sampled_from(PEOPLE)
_numbers = st.integers(1, 6).map(str)
_starts = st.sampled_from(STARTS)
_ends = st.sampled_from([None, None, NOW])

STEPS: dict[str, tuple[Callable[..., None], tuple[st.SearchStrategy[Any], ...]]] = {
    "individual": (
        lambda clinic, number, person, start, ended, missed: clinic.appointment(
            number, "individual", NOW + start, patient_id=person, cancelled_at=ended, did_not_arrive=missed
        ),
        (_numbers, _people, _starts, _ends, st.booleans()),
    ),
    "group": (
        lambda clinic, number, start, ended: clinic.appointment(number, "group", NOW + start, archived_at=ended),
        (_numbers, _starts, _ends),
    ),
    "attendee": (
        lambda clinic, number, booking, person, ended, arrived: clinic.attendee(
            number, booking, person, cancelled_at=ended, arrived=arrived
        ),
        (_numbers, _numbers, _people, _ends, st.sampled_from([None, True, False])),
    ),
    "patient": (
        lambda clinic, number, name, email, ended, into: clinic.patient(
            number, first_name=name, last_name=None, email=email, archived_at=ended, merged_into_id=into
        ),
        (
            _people,
            st.sampled_from(NAMES),
            st.sampled_from(EMAILS),
            _ends,
            st.sampled_from([None, None, *PEOPLE, "gone"]),
        ),
    ),
    "contact": (
        lambda clinic, contact, of, name, email: clinic.contact(contact, cliniko_patient_id=of, name=name, email=email),
        (
            st.sampled_from(CONTACTS),
            st.sampled_from([None, None, *PEOPLE]),
            st.sampled_from(NAMES),
            st.sampled_from(EMAILS),
        ),
    ),
    "contact deleted": (
        lambda clinic, contact: clinic.change_contacts(
            "delete from public.contacts where id = :id", id=clinic.own(contact)
        ),
        (st.sampled_from(CONTACTS),),
    ),
    "contacts swapped": (
        lambda clinic, one, other: clinic.change_contacts(
            "update public.contacts as mine set name = theirs.name, email = theirs.email,"
            " cliniko_patient_id = theirs.cliniko_patient_id from public.contacts as theirs"
            " where mine.id in (:one, :other) and theirs.id in (:one, :other) and mine.id <> theirs.id",
            one=clinic.own(one),
            other=clinic.own(other),
        ),
        (st.sampled_from(CONTACTS), st.sampled_from(CONTACTS)),
    ),
    "practitioner": (
        lambda clinic, name: clinic.upsert(PRACTITIONERS, ("1", name, LONG_AGO, NOW)),
        (st.sampled_from(["Dr No", "Dr Who"]),),
    ),
    "time": (lambda clinic, passed: setattr(clinic, "as_of", NOW + passed), (_starts,)),
    "a little time": (
        lambda clinic, seconds: setattr(clinic, "as_of", clinic.as_of + timedelta(seconds=seconds)),
        (st.sampled_from([1, 3600, 90_000, 30 * 86_400]),),
    ),
    "window": (lambda clinic, days: setattr(clinic, "window", timedelta(days=days)), (st.sampled_from([60, 30]),)),
    "no-shows": (lambda clinic, counted: setattr(clinic, "count_no_shows", counted), (st.booleans(),)),
    "by hand": (
        lambda clinic, statement: clinic.execute(statement),
        (
            st.sampled_from(
                [
                    "delete from cliniko.appointments where id = '1'",
                    "delete from cliniko.attendees",
                    "update cliniko.patients set deleted_at = now() where id = '2'",
                    "delete from cliniko.contact_mapping where patient_id = '1'",
                    "delete from cliniko.current_attendances where kind = 'earlier'",
                    "delete from public.active_patients",
                ]
            ),
        ),
    ),
    "killed after the mapping": (lambda clinic: clinic.derive(clinic.mapping()) and None, ()),
    "active_patients alone": (lambda clinic: clinic.derive(clinic.active(), anew=True) and None, ()),
    "sync": (lambda clinic: clinic.sync() and clinic.assert_as_computed_anew(), ()),
    "full sync": (lambda clinic: clinic.sync(anew=True) and clinic.assert_as_computed_anew(), ()),
}
# Syncs and time are what matters.
OFTEN = ["sync"] * 6 + ["a little time"] * 3 + ["individual", "attendee", "contact"]
steps = st.lists(
    st.sampled_from([*STEPS, *OFTEN]).flatmap(lambda kind: st.tuples(st.just(kind), *STEPS[kind][1])),
    min_size=3,
    max_size=25,
)


@settings(max_examples=examples(4, 100), suppress_health_check=list(HealthCheck))
@given(steps)
def test_sequence_of_changes_equals_a_full_computation(database: Database, history: list[tuple[Any, ...]]) -> None:
    clinic = Clinic(database)
    for number in PEOPLE:
        clinic.patient(number, first_name=NAMES[int(number) % 4], last_name=None)
    for number, contact in enumerate(CONTACTS[:3]):
        clinic.contact(contact, name=NAMES[number])
    clinic.appointment("1", "individual", NOW - timedelta(days=1), patient_id="1")
    clinic.appointment("2", "group", NOW + timedelta(hours=1))
    clinic.attendee("1", "2", "2", arrived=False)
    for kind, *values in history:
        STEPS[kind][0](clinic, *values)
    clinic.sync()
    clinic.assert_as_computed_anew()
    # Whether what serves is kept already depends on the history.
    assert not clinic.sync()[0]
    clinic.assert_as_computed_anew()
    assert clinic.sync() == [False, False]
    clinic.assert_as_computed_anew()
