"""Why a patient is or is not active, and how it was matched: every reason by hand, then held against the tables that
the pipeline's own queries make of the same records.

HYPOTHESIS_PROFILE=thorough draws 500 hostile accounts instead of a few, and explains every patient of the demo's
largest clinic, not one in eight.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4, uuid5

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from sqlalchemy.engine import URL, Connection

from cliniko_pipeline.cliniko import records as cliniko
from cliniko_pipeline.cliniko.decoding import decode_page
from cliniko_pipeline.errors import DatabaseSetupError, DataError
from cliniko_pipeline.postgres import tables
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.explanations import Counts, Explanation, Pass, Rules, explain, unknown_patient
from cliniko_pipeline.postgres.merge import replace_by_query, upsert
from cliniko_pipeline.sandbox.demo import demo_organizations
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.hostile_accounts import (
    ORGANIZATION,
    Account,
    WireRecord,
    accounts,
    attendee,
    contact,
    group_appointment,
    hand_written_account,
    individual_appointment,
    patient,
)
from cliniko_pipeline_tests.support.pipelines import errors_of, opened_pipeline

AS_OF = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
RECENTLY = "2026-06-01T09:00:00Z"
SOON = "2026-06-20T09:00:00Z"
ENDED = "2026-05-01T00:00:00Z"
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
MOST_PATIENTS = 150
RULES = Rules(timedelta(days=60), count_no_shows=True)
WITHOUT_NO_SHOWS = Rules(timedelta(days=60), count_no_shows=False)

SOURCES = (
    (cliniko.PATIENTS, tables.PATIENTS, None),
    (cliniko.APPOINTMENT_TYPES, tables.APPOINTMENT_TYPES, None),
    (cliniko.PRACTITIONERS, tables.PRACTITIONERS, None),
    (cliniko.INDIVIDUAL_APPOINTMENTS, tables.APPOINTMENTS, "individual"),
    (cliniko.GROUP_APPOINTMENTS, tables.APPOINTMENTS, "group"),
    (cliniko.ATTENDEES, tables.ATTENDEES, None),
)
ASSETS = ["active_patients", "cliniko/appointments", "cliniko/patients", "contact_mapping"]


class Clinic:
    """An organization with records as the client makes them of Cliniko's JSON, without HTTP and without Dagster."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.id = f"clinic-{uuid4().hex}"

    def store(self, **wire: Sequence[WireRecord]) -> None:
        """Adds or renews the records; every resource then counts as read whole."""
        with self.database.organization(self.id) as connection:
            for resource, table, kind in SOURCES:
                entries = list(wire.get(resource.name, ()))
                page = decode_page(resource, json.dumps({resource.name: entries, "total_entries": 0}).encode())
                upsert(connection, table, [_row(table, record, kind) for record in page.records])
                connection.execute(
                    sa.text(
                        "insert into cliniko.crawls (organization_id, resource, started_at, completed_at)"
                        " values (:id, :resource, now(), now()) on conflict do nothing"
                    ),
                    {"id": self.id, "resource": resource.name},
                )

    def add_contacts(self, *rows: Mapping[str, Any]) -> None:
        """Contacts made with `hostile.contact`; `contact_id` tells which ids they have here."""
        with self.database.operator() as connection:
            for row in rows:
                organization = self.id if row["organization_id"] == ORGANIZATION else f"{self.id}-neighbour"
                connection.execute(
                    sa.text(
                        "insert into public.contacts"
                        " (id, organization_id, cliniko_patient_id, name, first_name, last_name, email)"
                        " values (:id, :organization_id, :cliniko_patient_id, :name, :first_name, :last_name, :email)"
                    ),
                    {**row, "id": self.contact_id(row["id"].int), "organization_id": organization},
                )

    def contact_id(self, number: int) -> UUID:
        return uuid5(UUID(self.id.removeprefix("clinic-")), str(number))

    def compute(self, as_of: datetime = AS_OF, rules: Rules = RULES) -> None:
        """The mapping and the active patients, by the pipeline's queries."""
        with self.database.organization(self.id) as connection:
            replace_by_query(connection, tables.CONTACT_MAPPING, sql("contact_mapping"), {})
        with self.database.organization(self.id) as connection:
            replace_by_query(connection, tables.ACTIVE_PATIENTS, sql("active_patients"), rules.parameters(as_of))

    def add_run(self, status: str, started_at: datetime, error: str | None = None) -> None:
        with self.database.organization(self.id) as connection:
            connection.execute(
                sa.text(
                    "insert into cliniko.sync_runs (organization_id, run_id, planned, status, started_at, error)"
                    " values (:id, :run_id, :planned, :status, :started_at, :error)"
                ),
                {
                    "id": self.id,
                    "run_id": uuid4().hex,
                    "planned": ASSETS,
                    "status": status,
                    "started_at": started_at,
                    "error": error,
                },
            )

    def explain(self, patient_id: str, as_of: datetime | None = None, rules: Rules = RULES) -> Explanation:
        with self.database.organization(self.id) as connection:
            found = explain(connection, patient_id, rules, as_of)
        assert found is not None
        return found

    def run(self, statement: str) -> None:
        with self.database.organization(self.id) as connection:
            connection.execute(sa.text(statement))


def _row(table: tables.Table, record: cliniko.Record, kind: str | None) -> tuple[object, ...]:
    absent = {"kind": kind, "did_not_arrive": False}
    return tuple(getattr(record, column, absent.get(column)) for column in table.written)


@pytest.fixture
def clinic(module_database: Database) -> Clinic:
    return Clinic(module_database)


@pytest.fixture
def named(clinic: Clinic) -> Clinic:
    """A clinic whose patient 1 is contact 1 and came recently; computed."""
    clinic.store(patients=[patient("1", "Ann", "Lee")], individual_appointments=[came()])
    clinic.add_contacts(contact(1, cliniko_patient_id="1"))
    clinic.compute()
    return clinic


def came(appointment_id: str = "10", patient_id: str = "1", starts_at: str = RECENTLY, **changes: Any) -> WireRecord:
    return individual_appointment(appointment_id, patient_id, starts_at, **changes)


# Attendances. -------------------------------------------------------------------------------------------------------


def test_the_window_is_judged_to_the_second_at_both_ends(clinic: Clinic) -> None:
    starts = {
        "1": "2026-06-15T09:30:00Z",
        "2": "2026-06-15T09:30:01Z",
        "3": "2026-04-16T09:30:00Z",
        "4": "2026-04-16T09:29:59Z",
    }
    clinic.store(patients=[patient("1")], individual_appointments=[came(i, starts_at=at) for i, at in starts.items()])
    found = clinic.explain("1", AS_OF)
    assert {each.id: each.window for each in found.attendances} == {
        "2": "upcoming",
        "1": "recent",
        "3": "recent",
        "4": "earlier",
    }
    assert [each.id for each in found.attendances] == ["2", "1", "3", "4"]
    assert found.counts == Counts(2, 1, 4, AS_OF)
    assert found.is_active


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"cancelled_at": ENDED}, ["cancelled"]),
        ({"archived_at": ENDED}, ["archived"]),
        ({"deleted_at": ENDED}, ["deleted"]),
        ({"cancelled_at": ENDED, "deleted_at": ENDED}, ["cancelled", "deleted"]),
        ({"cancelled_at": "", "did_not_arrive": True}, []),
    ],
)
def test_an_individual_appointment_counts_unless_it_was_cancelled_archived_or_deleted(
    clinic: Clinic, changes: dict[str, Any], reasons: list[str]
) -> None:
    clinic.store(patients=[patient("1")], individual_appointments=[came(**changes)])
    found = clinic.explain("1", AS_OF)
    (attendance,) = found.attendances
    assert [reason for reason, _ in attendance.left_out] == reasons
    assert {at for _, at in attendance.left_out} <= {datetime(2026, 5, 1, tzinfo=UTC)}
    assert attendance.counts == found.is_active == (not reasons)


@pytest.mark.parametrize(
    ("booking", "mine", "reasons"),
    [
        ({}, {"cancelled_at": ENDED}, ["cancelled"]),
        ({}, {"archived_at": ENDED}, ["archived"]),
        ({}, {"deleted_at": ENDED}, ["deleted"]),
        ({"archived_at": ENDED}, {}, ["booking_archived"]),
        ({"deleted_at": ENDED}, {"cancelled_at": ENDED}, ["cancelled", "booking_deleted"]),
        ({"id": "404"}, {}, ["booking_unknown"]),
        ({"id": "404"}, {"archived_at": ENDED}, ["archived", "booking_unknown"]),
        ({}, {}, []),
    ],
)
def test_a_place_in_a_group_counts_unless_it_or_the_group_is_no_more(
    clinic: Clinic, booking: dict[str, Any], mine: dict[str, Any], reasons: list[str]
) -> None:
    clinic.store(
        patients=[patient("1")],
        group_appointments=[group_appointment("20", RECENTLY, **booking)],
        attendees=[attendee("30", "20", "1", **mine)],
    )
    found = clinic.explain("1", AS_OF)
    (attendance,) = found.attendances
    assert (attendance.kind, attendance.id, attendance.attendee_id) == ("group", "20", "30")
    assert attendance.window == ("unknown" if "id" in booking else "recent")
    assert [reason for reason, _ in attendance.left_out] == reasons
    assert attendance.counts == found.is_active == (not reasons)


@pytest.mark.parametrize(
    ("table", "reasons"),
    [
        ("attendees", {"30": ["vanished"], "31": ["deleted", "vanished"]}),
        ("appointments", {"30": ["booking_vanished"], "31": ["deleted", "booking_vanished"]}),
    ],
)
def test_what_a_full_sync_no_longer_found_says_so_and_what_was_deleted_before_says_both(
    clinic: Clinic, table: str, reasons: dict[str, list[str]]
) -> None:
    clinic.store(
        patients=[patient("1")],
        group_appointments=[group_appointment("20", RECENTLY)],
        attendees=[attendee("30", "20", "1"), attendee("31", "20", "1", deleted_at=ENDED)],
    )
    clinic.run(f"update cliniko.{table} set vanished_at = now(), deleted_at = coalesce(deleted_at, now())")
    clinic.run("update cliniko.patients set vanished_at = now(), deleted_at = now()")
    found = clinic.explain("1", AS_OF)
    assert {each.attendee_id: [reason for reason, _ in each.left_out] for each in found.attendances} == reasons
    assert found.person.state == "deleted"
    assert found.person.record is not None
    assert found.person.record.vanished_at == found.person.record.deleted_at


def test_an_attendee_without_a_booking_is_told_and_one_of_an_individual_appointment_is_not(clinic: Clinic) -> None:
    clinic.store(
        patients=[patient("1")],
        individual_appointments=[came("10")],
        attendees=[attendee("30", "10", "1"), attendee("31", None, "1")],
    )
    found = clinic.explain("1", AS_OF)
    assert [(each.id, each.attendee_id) for each in found.attendances] == [("10", None), (None, "31")]
    assert found.counts.total == 1


def test_a_group_with_the_id_of_an_individual_appointment_is_still_a_group(clinic: Clinic) -> None:
    clinic.store(
        patients=[patient("1")],
        individual_appointments=[came("10")],
        group_appointments=[group_appointment("10", RECENTLY)],
        attendees=[attendee("30", "10", "1")],
    )
    assert clinic.explain("1", AS_OF).counts.recent == 2


def test_a_group_counts_once_by_the_first_place_that_stands(clinic: Clinic) -> None:
    clinic.store(
        patients=[patient("1"), patient("2", merged_into="1")],
        group_appointments=[group_appointment("20", RECENTLY)],
        attendees=[
            attendee("8", "20", "1", cancelled_at=ENDED),
            attendee("9", "20", "1"),
            attendee("10", "20", "2"),
            attendee("100", "20", "1"),
        ],
    )
    found = clinic.explain("1", AS_OF)
    assert {each.attendee_id: each.counts for each in found.attendances} == {
        "8": False,
        "9": True,
        "10": False,
        "100": False,
    }
    told = {each.attendee_id: ([r for r, _ in each.left_out], each.counted_attendee_id) for each in found.attendances}
    assert told["10"] == told["100"] == (["counted_once"], "9")
    assert told["8"] == (["cancelled"], None)
    assert told["9"] == ([], None)
    assert found.counts == Counts(1, 0, 1, datetime(2026, 6, 1, 9, tzinfo=UTC))


@pytest.mark.parametrize(
    ("arrived", "starts_at", "expected"),
    [
        ([False], RECENTLY, {"30": "no_show"}),
        ([False, False], RECENTLY, {"30": "no_show", "31": "no_show"}),
        ([False, None], RECENTLY, {"30": "counted_once", "31": None}),
        ([None, False], RECENTLY, {"30": None, "31": "counted_once"}),
        ([False], SOON, {"30": None}),
    ],
    ids=["nobody", "nobody twice", "the second perhaps", "the first perhaps", "not held yet"],
)
def test_no_shows_in_groups_are_left_out_where_the_setting_says_so(
    clinic: Clinic, arrived: list[bool | None], starts_at: str, expected: dict[str, str | None]
) -> None:
    clinic.store(
        patients=[patient("1")],
        group_appointments=[group_appointment("20", starts_at)],
        attendees=[attendee(str(30 + n), "20", "1", arrived=each) for n, each in enumerate(arrived)],
    )
    left_out = {each.attendee_id: each.left_out for each in clinic.explain("1", AS_OF, WITHOUT_NO_SHOWS).attendances}
    assert {key: reasons[0][0] if reasons else None for key, reasons in left_out.items()} == expected
    assert clinic.explain("1", AS_OF).counts.total == 1


def test_individual_no_shows_are_left_out_where_the_setting_says_so(clinic: Clinic) -> None:
    clinic.store(patients=[patient("1")], individual_appointments=[came(did_not_arrive=True)])
    assert clinic.explain("1", AS_OF).is_active
    found = clinic.explain("1", AS_OF, WITHOUT_NO_SHOWS)
    assert found.attendances[0].left_out == (("no_show", None),)
    assert not found.is_active


# The person. --------------------------------------------------------------------------------------------------------


def test_merges_are_followed_and_every_id_of_the_person_is_counted(clinic: Clinic) -> None:
    clinic.store(
        patients=[
            patient("7", merged_into="8", merged_at=ENDED),
            patient("8", merged_into="10"),
            patient("9", merged_into="10"),
            patient("10"),
            patient("11"),
        ],
        individual_appointments=[came(str(100 + n), str(n)) for n in range(7, 12)],
    )
    found = clinic.explain("7", AS_OF)
    assert found.person.id == "10"
    assert [(each.id, each.merged_into_id) for each in found.person.chain] == [("7", "8"), ("8", "10"), ("10", None)]
    assert [each.id for each in found.person.merged] == ["9"]
    assert not found.person.in_loop
    assert sorted(each.patient_id for each in found.attendances) == ["10", "7", "8", "9"]
    of_the_person = clinic.explain("10", AS_OF)
    assert [each.id for each in of_the_person.person.chain] == ["10"]
    assert [each.id for each in of_the_person.person.merged] == ["7", "8", "9"]
    assert of_the_person.counts == found.counts


def test_a_loop_of_merges_is_told_and_its_lowest_id_stands_for_it(clinic: Clinic) -> None:
    clinic.store(
        patients=[
            patient("93", merged_into="1000"),
            patient("1000", merged_into="91"),
            patient("91", merged_into="1000"),
        ],
        individual_appointments=[came("10", "1000")],
    )
    found = clinic.explain("93", AS_OF)
    assert (found.person.id, found.person.in_loop) == ("91", True)
    assert [each.id for each in found.person.chain] == ["93", "1000", "91"]
    assert found.is_active


def test_a_loop_is_told_from_within_where_the_way_does_not_end_at_its_lowest_id(clinic: Clinic) -> None:
    clinic.store(
        patients=[patient("1000", merged_into="91"), patient("91", merged_into="1000"), patient("95", merged_into="95")]
    )
    assert [each.id for each in clinic.explain("91", AS_OF).person.chain] == ["91", "1000"]
    assert clinic.explain("95", AS_OF).person.in_loop


def test_a_patient_merged_into_one_without_a_record_is_nobody(clinic: Clinic) -> None:
    clinic.store(
        patients=[patient("95", "Abe", merged_into="9999")],
        individual_appointments=[came("10", "95"), came("11", "9999")],
    )
    clinic.add_contacts(contact(1, cliniko_patient_id="95"), contact(2, name="Abe"))
    clinic.compute()
    found = clinic.explain("95")
    assert (found.person.id, found.person.record, found.person.state) == ("9999", None, "no_record")
    assert (found.match.stored, found.match.now, found.match.passes) == (None, None, ())
    assert (found.is_active, found.listing) == (False, "not_active")


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"archived_at": ENDED}, "archived"),
        ({"deleted_at": ENDED}, "deleted"),
        ({"archived_at": ENDED, "deleted_at": ENDED}, "archived"),
        ({}, "current"),
    ],
)
def test_an_archived_or_deleted_person_is_not_active_whatever_it_attended(
    clinic: Clinic, changes: dict[str, Any], state: str
) -> None:
    clinic.store(patients=[patient("1", **changes)], individual_appointments=[came()])
    found = clinic.explain("1", AS_OF)
    assert found.person.state == state
    assert found.counts.recent == 1
    assert found.is_active == (state == "current")


# By which instant. --------------------------------------------------------------------------------------------------


def test_the_instant_is_the_one_given_else_that_of_the_table_else_of_the_last_success_else_now(clinic: Clinic) -> None:
    clinic.store(patients=[patient("1", "Ann")], individual_appointments=[came()])
    before = datetime.now(UTC)
    found = clinic.explain("1")
    assert found.as_of_source == "now"
    assert before - timedelta(minutes=1) <= found.as_of <= datetime.now(UTC) + timedelta(minutes=1)
    earlier = datetime(2026, 1, 1, tzinfo=UTC)
    clinic.add_run("succeeded", earlier)
    clinic.add_run("failed", earlier + timedelta(days=1))
    found = clinic.explain("1")
    assert (found.as_of, found.as_of_source) == (earlier, "last_run")
    clinic.add_contacts(contact(1, cliniko_patient_id="1"))
    clinic.compute()
    found = clinic.explain("1")
    assert (found.as_of, found.as_of_source) == (AS_OF, "active_patients")
    found = clinic.explain("1", earlier)
    assert (found.as_of, found.as_of_source) == (earlier, "argument")


# public.active_patients. --------------------------------------------------------------------------------------------


def test_an_active_patient_with_a_contact_is_listed(named: Clinic) -> None:
    found = named.explain("1")
    assert found.listing == "listed"
    assert found.row is not None
    assert (found.row.recent_appointment_count, found.row.search_date_to) == (1, AS_OF)
    assert found.row.contact_id == named.contact_id(1)
    assert found.changed_after is None


def test_a_row_that_would_be_computed_otherwise_now_names_the_columns(named: Clinic) -> None:
    named.store(individual_appointments=[came("11", starts_at=SOON)])
    found = named.explain("1")
    assert found.listing == "differs"
    assert found.row is not None
    assert found.row.differences == ("upcoming_appointment_count", "total_appointment_count", "upcoming_appointments")
    assert found.changed_after is not None
    found = named.explain("1", rules=Rules(timedelta(days=90), count_no_shows=True))
    assert found.row is not None
    assert "search_date_from" in found.row.differences


def test_a_row_whose_person_is_active_no_more_is_out_of_date(named: Clinic) -> None:
    named.store(individual_appointments=[came(cancelled_at=ENDED)])
    found = named.explain("1")
    assert (found.is_active, found.listing) == (False, "out_of_date")


def test_a_row_of_an_older_program_without_dates_is_judged_by_the_tables_instant(named: Clinic) -> None:
    named.store(patients=[patient("2")], individual_appointments=[came("12", "2")])
    named.add_contacts(contact(2, cliniko_patient_id="2"))
    named.compute()
    named.run(
        "update public.active_patients set search_date_from = null, search_date_to = null, updated_at = null"
        f" where contact_id = '{named.contact_id(1)}'"
    )
    found = named.explain("1")
    assert (found.listing, found.as_of) == ("differs", AS_OF)
    assert found.row is not None
    assert found.row.differences == ("search_date_from", "search_date_to")


def test_why_an_active_patient_is_not_listed(named: Clinic) -> None:
    named.store(
        patients=[patient("2", "Bo"), patient("3", "Cy"), patient("4", "Cy"), patient("5", "Di", archived_at=ENDED)],
        individual_appointments=[came(f"1{n}", str(n)) for n in range(2, 6)],
    )
    named.add_contacts(contact(3, name="Cy"))
    assert named.explain("2").listing == "unmapped"
    named.compute()
    assert {n: named.explain(n).listing for n in "12345"} == {
        "1": "listed",
        "2": "unmatched",
        "3": "ambiguous",
        "4": "ambiguous",
        "5": "not_active",
    }
    named.add_contacts(contact(2, name="Bo"))
    assert named.explain("2").listing == "unmatched"  # the stored mapping does not know yet
    named.compute()
    assert named.explain("2").listing == "listed"
    named.run("delete from public.active_patients where recent_appointment_count = 1")
    assert named.explain("2", AS_OF).listing == "not_computed"


def test_a_patient_that_is_active_by_another_instant_than_the_tables_is_told_so(named: Clinic) -> None:
    named.store(patients=[patient("2", "Bo")], individual_appointments=[came("12", "2", "2026-07-01T00:00:00Z")])
    named.add_contacts(contact(2, name="Bo"))
    named.compute()
    found = named.explain("2", AS_OF + timedelta(days=30))
    assert (found.is_active, found.listing) == (True, "other_instant")
    assert named.explain("2").listing == "not_active"
    found = named.explain("1", AS_OF + timedelta(days=300))
    assert (found.is_active, found.listing) == (False, "listed")


def test_a_contact_deleted_since_is_told(named: Clinic) -> None:
    with named.database.operator() as connection:
        connection.execute(sa.text("delete from public.contacts where id = :id"), {"id": named.contact_id(1)})
    found = named.explain("1")
    assert (found.listing, found.match.contact_exists) == ("out_of_date", False)
    named.run("delete from public.active_patients")
    assert named.explain("1", AS_OF).listing == "contact_gone"
    assert found.match.stored is not None
    assert found.match.now is not None
    assert (found.match.stored.status, found.match.now.status) == ("matched", "unmatched")


# The match. ---------------------------------------------------------------------------------------------------------


MAIL = "ann@clinic.example"
NAMELESS_PASS = ("cliniko_patient_id", "no_candidate", "no_contact", [], [])
MAILLESS_PASS = ("email", "no_candidate", "no_key", [], [])
Told = tuple[str, str, str, list[tuple[int, str, str | None]], list[str]]


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
        pytest.param(
            [patient("1", "Ann", email=MAIL, archived_at=ENDED)],
            [contact(1, name="Ann", email=MAIL)],
            [
                NAMELESS_PASS,
                ("email", "not_taken", "not_current", [], []),
                ("name", "not_taken", "not_current", [], []),
            ],
            id="archived",
        ),
        pytest.param(
            [patient("1", "Ann", email=MAIL)],
            [contact(1, name="Bo", email=MAIL.upper())],
            [NAMELESS_PASS, ("email", "matched", "only_pair", [(1, "free", None)], [])],
            id="same e-mail",
        ),
        pytest.param(
            [patient("1", "Ann", email=MAIL), patient("2", "Bo", email=MAIL)],
            [contact(1, name="Ann", email=MAIL), contact(2, name="Cy", email=MAIL)],
            [NAMELESS_PASS, ("email", "matched", "equal_names", [(1, "free", None), (2, "free", None)], ["2"])],
            id="a family",
        ),
        pytest.param(
            [patient("1", "Ann", email=MAIL), patient("2", "Bo", email=MAIL)],
            [contact(1, name="Cy", email=MAIL)],
            [NAMELESS_PASS, ("email", "ambiguous", "several", [(1, "free", None)], ["2"])],
            id="an e-mail of two patients",
        ),
        pytest.param(
            [patient("1", "Ann", email=MAIL)],
            [contact(1, name="Cy", email=MAIL), contact(2, name="Di", email=MAIL)],
            [NAMELESS_PASS, ("email", "ambiguous", "several", [(1, "free", None), (2, "free", None)], [])],
            id="an e-mail of two contacts",
        ),
        pytest.param(
            [patient("1", "Ann", email=MAIL), patient("2", "Bo", email=MAIL)],
            [contact(1, name="Bo", email=MAIL), contact(2, name="Cy", email=MAIL)],
            [NAMELESS_PASS, ("email", "ambiguous", "several", [(1, "taken", "2"), (2, "free", None)], ["2"])],
            id="an e-mail of a family, one of whom is found",
        ),
        pytest.param(
            [patient("1", "Ann", email=MAIL), patient("2", "Bo", email=MAIL)],
            [contact(1, name="Bo", email=MAIL), contact(2, name="Ann")],
            [
                NAMELESS_PASS,
                ("email", "no_candidate", "none_free", [(1, "taken", "2")], ["2"]),
                ("name", "matched", "only_pair", [(2, "free", None)], []),
            ],
            id="a contact taken by another of the family",
        ),
        pytest.param(
            [patient("1", "Ann", email=MAIL), patient("77", "Ann", email=MAIL)],
            [contact(1, name="Ann", email=MAIL, cliniko_patient_id="77")],
            [
                NAMELESS_PASS,
                ("email", "no_candidate", "none_free", [(1, "names_another", "77")], []),
                ("name", "no_candidate", "none_free", [(1, "names_another", "77")], []),
            ],
            id="a contact that names another",
        ),
        pytest.param(
            [patient("1", "Ann"), patient("2", "Bo", email=MAIL)],
            [contact(1, name="Ann", email=MAIL)],
            [NAMELESS_PASS, MAILLESS_PASS, ("name", "no_candidate", "none_free", [(1, "taken", "2")], [])],
            id="a contact of the name taken by e-mail",
        ),
        pytest.param(
            [patient("1", "Ann"), patient("2", "Ann", archived_at=ENDED), patient("3", "ann"), patient("4", "Ann")],
            [contact(1, name="Ann"), contact(4, cliniko_patient_id="4")],
            [NAMELESS_PASS, MAILLESS_PASS, ("name", "ambiguous", "several", [(1, "free", None)], ["3"])],
            id="a name of two patients",
        ),
        pytest.param(
            [patient("1", "Ann")],
            [contact(1, name="Ann"), contact(2, name=" ", first_name="ANN")],
            [
                NAMELESS_PASS,
                MAILLESS_PASS,
                ("name", "ambiguous", "several", [(1, "free", None), (2, "free", None)], []),
            ],
            id="a name of two contacts",
        ),
        pytest.param(
            [patient("1", " ", email=" ")],
            [contact(1, name="", email="")],
            [NAMELESS_PASS, MAILLESS_PASS, ("name", "no_candidate", "no_key", [], [])],
            id="neither e-mail nor name",
        ),
        pytest.param(
            [patient("1", "Ann", email=MAIL)],
            [contact(1, name="Bo", email="bo@clinic.example")],
            [
                NAMELESS_PASS,
                ("email", "no_candidate", "no_contact", [], []),
                ("name", "no_candidate", "no_contact", [], []),
            ],
            id="no contact",
        ),
    ],
)
def test_every_pass_says_what_it_found(
    clinic: Clinic, patients: list[WireRecord], contacts: list[dict[str, Any]], expected: list[Told]
) -> None:
    clinic.store(patients=patients)
    clinic.add_contacts(*contacts)
    clinic.compute()
    found = clinic.explain("1", AS_OF)
    numbers = {clinic.contact_id(number): number for number in range(1, 10)}
    assert [_told(each, numbers) for each in found.match.passes] == expected
    assert found.match.stored == found.match.now


def _told(each: Pass, numbers: Mapping[UUID, int]) -> Told:
    candidates = sorted((numbers[one.id], one.state, one.patient_id) for one in each.candidates)
    return each.method, each.outcome, each.reason, candidates, list(each.other_patient_ids)


def test_a_contact_changed_since_shows_in_what_the_next_mapping_would_say(named: Clinic) -> None:
    with named.database.operator() as connection:
        connection.execute(
            sa.text("update public.contacts set cliniko_patient_id = null, name = 'Ann Lee' where id = :id"),
            {"id": named.contact_id(1)},
        )
    match = named.explain("1").match
    assert match.stored is not None
    assert match.now is not None
    assert (match.stored.method, match.now.method) == ("cliniko_patient_id", "name")


# What is not there, and what is not done. ---------------------------------------------------------------------------


def test_a_patient_without_a_record_is_told_by_what_is_known_of_it(clinic: Clinic) -> None:
    clinic.store(
        patients=[patient("1", merged_into="404")],
        individual_appointments=[came("10", "404")],
        attendees=[attendee("30", "20", "404")],
    )
    clinic.run(
        "insert into cliniko.rejected_records (organization_id, resource, position, id, reason)"
        f" values ('{clinic.id}', 'patients', 1, '5', 'archived_at: not an instant'),"
        f" ('{clinic.id}', 'attendees', 1, '6', 'another resource')"
    )
    with clinic.database.organization(clinic.id) as connection:
        found = {
            each: (explain(connection, each, RULES), unknown_patient(connection, each)) for each in ("404", "5", "6")
        }
    assert {each: explained for each, (explained, _) in found.items()} == dict.fromkeys(found)
    told = {each: (unknown.rejected_because, unknown.mentions) for each, (_, unknown) in found.items()}
    assert told == {"404": (None, 3), "5": ("archived_at: not an instant", 0), "6": (None, 0)}


def test_nothing_of_another_organization_is_seen(module_database: Database) -> None:
    """The same ids, names and e-mails on both sides; the other's contacts would make the match ambiguous."""
    mine, theirs = Clinic(module_database), Clinic(module_database)
    for each, starts_at in ((mine, "2020-01-01T00:00:00Z"), (theirs, RECENTLY)):
        each.store(
            patients=[patient("1", "Ann", email=MAIL)],
            individual_appointments=[came(f"1{starts_at[3]}", starts_at=starts_at)],
            group_appointments=[group_appointment("20", starts_at)],
        )
        each.add_contacts(contact(1, name="Ann", email=MAIL))
    theirs.store(patients=[patient("2", merged_into="1")], attendees=[attendee("30", "20", "1")])
    theirs.compute()
    theirs.add_run("failed", AS_OF, "theirs")
    found = mine.explain("1", AS_OF)
    assert [each.id for each in found.attendances] == ["10"]
    assert (found.is_active, found.person.merged, found.match.stored, found.row) == (False, (), None, None)
    assert found.match.now is not None
    assert found.match.now.contact_id == mine.contact_id(1)
    assert (found.state.judged_at, found.state.last_run_status) == (None, None)


def test_an_explanation_writes_nothing_and_lets_nothing_be_written(named: Clinic) -> None:
    def write_too(connection: Connection) -> None:
        explain(connection, "1", RULES)
        connection.execute(sa.text("delete from cliniko.patients"))

    with (
        pytest.raises((DataError, DatabaseSetupError), match="25006"),
        named.database.organization(named.id) as connection,
    ):
        write_too(connection)
    assert named.explain("1").listing == "listed"


# Held against the pipeline. -----------------------------------------------------------------------------------------


def assert_equal_to_the_tables(
    clinic: Clinic, patient_ids: Iterable[str], as_of: datetime, rules: Rules = RULES, *, are_all: bool = True
) -> list[Explanation]:
    """Every patient's explanation says what the freshly computed tables say."""
    with clinic.database.organization(clinic.id) as connection:
        mapping = {
            row.patient_id: row for row in connection.execute(sa.text("select * from cliniko.contact_mapping")).all()
        }
        rows = {
            row.contact_id: row for row in connection.execute(sa.text("select * from public.active_patients")).all()
        }
        persons = dict(connection.execute(sa.text("select patient_id, person_id from cliniko.persons()")).all())
        # An empty table does not tell what instant it was computed by.
        explained = [explain(connection, each, rules, None if rows else as_of) for each in patient_ids]
    listed: set[UUID] = set()
    for found in explained:
        assert found is not None
        assert found.person.id == persons[found.patient_id]
        stored = mapping.get(found.person.id)
        _assert_equal_to_the_mapping(found, stored)
        row = rows.get(stored.contact_id) if stored is not None else None
        assert (row is not None) == (found.is_active and stored is not None and stored.status == "matched")
        assert found.listing in ({"listed"} if row else {"not_active", "unmatched", "ambiguous"})
        assert (found.listing == "not_active") == (not found.is_active)
        if row is not None:
            listed.add(row.contact_id)
            last = row.last_appointment_date and row.last_appointment_date.replace(tzinfo=UTC)
            assert found.counts == Counts(
                row.recent_appointment_count, row.upcoming_appointment_count, row.total_appointment_count, last
            )
            for window, details in (("recent", row.recent_appointments), ("upcoming", row.upcoming_appointments)):
                counted = {(a.kind, a.id) for a in found.attendances if a.counts and a.window == window}
                assert counted == {(each["kind"], each["id"]) for each in details}
    assert listed == set(rows) or not are_all
    return [found for found in explained if found is not None]


def _assert_equal_to_the_mapping(found: Explanation, stored: Any) -> None:
    match = found.match
    assert match.stored == match.now
    if stored is None:
        assert match.stored is None
        assert found.person.record is None
        return
    assert match.stored is not None
    assert (match.stored.status, match.stored.method, match.stored.contact_id, match.stored.candidate_count) == (
        stored.status,
        stored.method,
        stored.contact_id,
        stored.candidate_count,
    )
    *earlier, last = match.passes
    assert all(each.outcome in {"no_candidate", "not_taken"} for each in earlier)
    assert last.outcome == stored.status or (stored.status == "unmatched" and len(match.passes) == 3)
    free = [each for each in last.candidates if each.state == "free"]
    if stored.status == "matched":
        assert stored.contact_id in {each.id for each in free}
        assert last.reason != "only_pair" or (len(free), last.other_patient_ids) == (1, ())
    if stored.status == "ambiguous":
        assert len(free) == stored.candidate_count
    for each in match.passes:
        if each.outcome == "no_candidate":
            assert all(candidate.state != "free" for candidate in each.candidates)
            assert (each.reason == "none_free") == bool(each.candidates)


@settings(
    deadline=None,
    max_examples=500 if THOROUGH else 6,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(accounts(bad_records=True))
@example(hand_written_account())
def test_explanations_of_hostile_accounts_equal_the_tables(module_database: Database, account: Account) -> None:
    """Beside the account's own contacts, in a second organization every patient has a contact that names it: there the
    numbers of all are in the table, not only of those that can be matched.
    """
    for rules in (RULES, WITHOUT_NO_SHOWS):
        own, all_named = Clinic(module_database), Clinic(module_database)
        for each in (own, all_named):
            each.store(**account.records)
        with own.database.organization(own.id) as connection:
            ids = list(connection.execute(sa.text("select id from cliniko.patients")).scalars())
            persons = list(
                connection.execute(
                    sa.text("select distinct person_id from cliniko.persons() where person_id = patient_id")
                ).scalars()
            )
        own.add_contacts(*account.contacts)
        all_named.add_contacts(*(contact(n, cliniko_patient_id=each) for n, each in enumerate(persons)))
        for each in (own, all_named):
            each.compute(account.as_of, rules)
            assert_equal_to_the_tables(each, ids, account.as_of, rules)


@pytest.fixture(scope="module")
def synced_demo(module_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Clinic]]:
    """The demo's accounts after the real main job."""
    url: URL = module_database.url
    demo = demo_organizations(AS_OF)
    with opened_pipeline(environment(url, Path(tmp_path_factory.mktemp("demo")))) as pipeline:
        with pipeline.sandbox([each.account for each in demo]) as sandbox:
            for each in demo:
                pipeline.add_organization(each.id, sandbox, each.account)
                pipeline.add_contacts([row | {"id": UUID(row["id"])} for row in each.contacts])
                result = pipeline.sync(each.id, AS_OF)
                assert result.success, errors_of(result)
        clinics = {each.id: Clinic(module_database) for each in demo}
        for name, each in clinics.items():
            each.id = name
        yield clinics


@pytest.mark.parametrize("name", ["surf-rehab", "harbour-pilates", "old-mill-physio"])
def test_explanations_after_a_sync_of_the_demo_equal_the_tables(synced_demo: dict[str, Clinic], name: str) -> None:
    clinic = synced_demo[name]
    with clinic.database.organization(name) as connection:
        ids = list(connection.execute(sa.text("select id from cliniko.patients order by id")).scalars())
    chosen = ids if THOROUGH or len(ids) < MOST_PATIENTS else ids[::8]
    explained = assert_equal_to_the_tables(clinic, chosen, AS_OF, are_all=chosen is ids)
    assert {found.as_of_source for found in explained} == {"active_patients"}
    assert {found.as_of for found in explained} == {AS_OF}
    assert {found.changed_after for found in explained} == {None}
    assert {found.listing for found in explained} >= {"listed", "not_active", "ambiguous"}
