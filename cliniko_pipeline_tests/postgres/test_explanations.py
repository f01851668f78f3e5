"""Explanations: every reason why a patient is or is not active and listed.

test_explanations_equal_tables.py compares them with the computed tables, test_contact_mapping.py tests the matching.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from cliniko_pipeline.errors import DatabaseSetupError, DataError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.explanations import Counts, Rules, explain, unknown_patient
from cliniko_pipeline_tests.support.hostile_accounts import attendee, contact, group_appointment, patient
from cliniko_pipeline_tests.support.stored_clinics import (
    AS_OF,
    EMAIL,
    ENDED,
    RECENTLY,
    RULES,
    SOON,
    WITHOUT_NO_SHOWS,
    StoredClinic,
    came,
)


@pytest.fixture
def clinic(module_database: Database) -> StoredClinic:
    return StoredClinic(module_database)


@pytest.fixture
def named(clinic: StoredClinic) -> StoredClinic:
    """A clinic whose patient 1 came recently and has contact 1; computed."""
    clinic.store(patients=[patient("1", "Ann", "Lee")], individual_appointments=[came()])
    clinic.add_contacts(contact(1, cliniko_patient_id="1"))
    clinic.compute()
    return clinic


# Attendances. -------------------------------------------------------------------------------------------------------


def test_activity_window_is_exact_to_the_second(clinic: StoredClinic) -> None:
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
def test_ended_individual_appointment_does_not_count(
    clinic: StoredClinic, changes: dict[str, Any], reasons: list[str]
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
def test_ended_attendee_or_group_does_not_count(
    clinic: StoredClinic, booking: dict[str, Any], mine: dict[str, Any], reasons: list[str]
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
def test_deletion_in_cliniko_is_a_reason(clinic: StoredClinic, table: str, reasons: dict[str, list[str]]) -> None:
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


def test_attendee_without_booking_is_listed(clinic: StoredClinic) -> None:
    clinic.store(
        patients=[patient("1")],
        individual_appointments=[came("10")],
        attendees=[attendee("30", "10", "1"), attendee("31", None, "1")],
    )
    found = clinic.explain("1", AS_OF)
    assert [(each.id, each.attendee_id) for each in found.attendances] == [("10", None), (None, "31")]
    assert found.counts.total == 1


def test_group_with_the_id_of_an_appointment_counts(clinic: StoredClinic) -> None:
    clinic.store(
        patients=[patient("1")],
        individual_appointments=[came("10")],
        group_appointments=[group_appointment("10", RECENTLY)],
        attendees=[attendee("30", "10", "1")],
    )
    assert clinic.explain("1", AS_OF).counts.recent == 2


def test_group_counts_once_by_its_first_attendee(clinic: StoredClinic) -> None:
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
def test_group_no_shows_follow_the_setting(
    clinic: StoredClinic, arrived: list[bool | None], starts_at: str, expected: dict[str, str | None]
) -> None:
    clinic.store(
        patients=[patient("1")],
        group_appointments=[group_appointment("20", starts_at)],
        attendees=[attendee(str(30 + n), "20", "1", arrived=each) for n, each in enumerate(arrived)],
    )
    left_out = {each.attendee_id: each.left_out for each in clinic.explain("1", AS_OF, WITHOUT_NO_SHOWS).attendances}
    assert {key: reasons[0][0] if reasons else None for key, reasons in left_out.items()} == expected
    assert clinic.explain("1", AS_OF).counts.total == 1


def test_individual_no_shows_follow_the_setting(clinic: StoredClinic) -> None:
    clinic.store(patients=[patient("1")], individual_appointments=[came(did_not_arrive=True)])
    assert clinic.explain("1", AS_OF).is_active
    found = clinic.explain("1", AS_OF, WITHOUT_NO_SHOWS)
    assert found.attendances[0].left_out == (("no_show", None),)
    assert not found.is_active


# The person. --------------------------------------------------------------------------------------------------------


def test_merges_are_followed_and_all_ids_counted(clinic: StoredClinic) -> None:
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
    of_person = clinic.explain("10", AS_OF)
    assert [each.id for each in of_person.person.chain] == ["10"]
    assert [each.id for each in of_person.person.merged] == ["7", "8", "9"]
    assert of_person.counts == found.counts


def test_loop_of_merges_is_one_person_with_the_lowest_id(clinic: StoredClinic) -> None:
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
    # Within the loop the chain ends where it began.
    assert [each.id for each in clinic.explain("91", AS_OF).person.chain] == ["91", "1000"]


def test_patient_merged_into_itself_is_a_loop(clinic: StoredClinic) -> None:
    clinic.store(patients=[patient("95", merged_into="95")])
    assert clinic.explain("95", AS_OF).person.in_loop


def test_merge_into_a_missing_patient_has_no_person(clinic: StoredClinic) -> None:
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
def test_archived_or_deleted_person_is_not_active(clinic: StoredClinic, changes: dict[str, Any], state: str) -> None:
    clinic.store(patients=[patient("1", **changes)], individual_appointments=[came()])
    found = clinic.explain("1", AS_OF)
    assert found.person.state == state
    assert found.counts.recent == 1
    assert found.is_active == (state == "current")


# By which instant. --------------------------------------------------------------------------------------------------


def test_instant_is_argument_table_last_success_or_now(clinic: StoredClinic) -> None:
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


def test_active_patient_with_contact_is_listed(named: StoredClinic) -> None:
    found = named.explain("1")
    assert found.listing == "listed"
    assert found.row is not None
    assert (found.row.recent_appointment_count, found.row.search_date_to) == (1, AS_OF)
    assert found.row.contact_id == named.contact_id(1)
    assert found.changed_after is None


def test_row_that_differs_names_the_columns(named: StoredClinic) -> None:
    named.store(individual_appointments=[came("11", starts_at=SOON)])
    found = named.explain("1")
    assert found.listing == "differs"
    assert found.row is not None
    assert found.row.differences == ("upcoming_appointment_count", "total_appointment_count", "upcoming_appointments")
    assert found.changed_after is not None
    found = named.explain("1", rules=Rules(timedelta(days=90), count_no_shows=True))
    assert found.row is not None
    assert "search_date_from" in found.row.differences


def test_row_of_an_inactive_patient_is_out_of_date(named: StoredClinic) -> None:
    named.store(individual_appointments=[came(cancelled_at=ENDED)])
    found = named.explain("1")
    assert (found.is_active, found.listing) == (False, "out_of_date")


def test_row_without_dates_uses_the_instant_of_the_table(named: StoredClinic) -> None:
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


def test_missing_row_has_a_reason(named: StoredClinic) -> None:
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


def test_activity_at_another_instant_is_a_reason(named: StoredClinic) -> None:
    named.store(patients=[patient("2", "Bo")], individual_appointments=[came("12", "2", "2026-07-01T00:00:00Z")])
    named.add_contacts(contact(2, name="Bo"))
    named.compute()
    found = named.explain("2", AS_OF + timedelta(days=30))
    assert (found.is_active, found.listing) == (True, "other_instant")
    assert named.explain("2").listing == "not_active"
    found = named.explain("1", AS_OF + timedelta(days=300))
    assert (found.is_active, found.listing) == (False, "listed")


def test_deleted_contact_is_a_reason(named: StoredClinic) -> None:
    named.delete_contact(1)
    found = named.explain("1")
    assert (found.listing, found.match.contact_exists) == ("out_of_date", False)
    named.run("delete from public.active_patients")
    assert named.explain("1", AS_OF).listing == "contact_gone"
    assert found.match.stored is not None
    assert found.match.now is not None
    assert (found.match.stored.status, found.match.now.status) == ("matched", "unmatched")


# Limits. --------------------------------------------------------------------------------------------------------------


def test_unknown_patient_has_rejection_and_mentions(clinic: StoredClinic) -> None:
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


def test_explanation_ignores_other_organizations(module_database: Database) -> None:
    """Both have equal ids, names and e-mails: contacts of the other would make the match ambiguous."""
    mine, theirs = StoredClinic(module_database), StoredClinic(module_database)
    for each, starts_at in ((mine, "2020-01-01T00:00:00Z"), (theirs, RECENTLY)):
        each.store(
            patients=[patient("1", "Ann", email=EMAIL)],
            individual_appointments=[came(f"1{starts_at[3]}", starts_at=starts_at)],
            group_appointments=[group_appointment("20", starts_at)],
        )
        each.add_contacts(contact(1, name="Ann", email=EMAIL))
    theirs.store(patients=[patient("2", merged_into="1")], attendees=[attendee("30", "20", "1")])
    theirs.compute()
    theirs.add_run("failed", AS_OF, "theirs")
    found = mine.explain("1", AS_OF)
    assert [each.id for each in found.attendances] == ["10"]
    assert (found.is_active, found.person.merged, found.match.stored, found.row) == (False, (), None, None)
    assert found.match.now is not None
    assert found.match.now.contact_id == mine.contact_id(1)
    assert (found.state.judged_at, found.state.last_run_status) == (None, None)


def test_explanation_is_read_only(named: StoredClinic) -> None:
    with (  # noqa: PT012
        pytest.raises((DataError, DatabaseSetupError), match="25006"),
        named.database.organization(named.id) as connection,
    ):
        explain(connection, "1", RULES)
        connection.execute(sa.text("delete from cliniko.patients"))
    assert named.explain("1").listing == "listed"
