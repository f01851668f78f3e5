"""Tests of explanations, with every reason why a patient is active and listed, or not.

test_explanations_equal_tables.py compares explanations with computed tables. test_contact_mapping.py tests the
matching.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from cliniko_pipeline.errors import DatabaseUnavailableError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.reads.explanations.attendances import Counts
from cliniko_pipeline.postgres.reads.explanations.explanation import Explanation, explain, unknown_patient
from cliniko_pipeline.postgres.rules import Rules
from cliniko_pipeline_tests.support.hostile_accounts import attendee, contact, group_appointment, patient
from cliniko_pipeline_tests.support.stored_clinics import (
    AS_OF,
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
    """Return a computed clinic. Patient 1 had a recent appointment and has contact 1."""
    clinic.store(patients=[patient("1", "Ann", "Lee")], individual_appointments=[came()])
    clinic.add_contacts(contact(1, cliniko_patient_id="1"))
    clinic.compute()
    return clinic


def reasons(found: Explanation) -> dict[str | None, list[str]]:
    """Return the reasons by the id of the attendee or of the individual appointment."""
    return {each.attendee_id or each.id: [reason for reason, _ in each.left_out] for each in found.attendances}


def test_activity_window_is_exact_to_the_second(clinic: StoredClinic) -> None:
    starts = {
        "2": ("2026-06-15T09:30:01Z", "upcoming"),
        "1": ("2026-06-15T09:30:00Z", "recent"),
        "3": ("2026-04-16T09:30:00Z", "recent"),
        "4": ("2026-04-16T09:29:59Z", "earlier"),
    }
    appointments = [came(each, starts_at=at) for each, (at, _) in starts.items()]
    clinic.store(patients=[patient("1")], individual_appointments=appointments)
    found = clinic.explain("1", AS_OF)
    assert [(each.id, each.window) for each in found.attendances] == [(i, window) for i, (_, window) in starts.items()]
    assert found.counts == Counts(2, 1, 4, AS_OF)
    assert found.is_active


ENDED_APPOINTMENTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "10": ({"cancelled_at": ENDED}, ["cancelled"]),
    "11": ({"archived_at": ENDED}, ["archived"]),
    "12": ({"deleted_at": ENDED}, ["deleted"]),
    "13": ({"cancelled_at": ENDED, "deleted_at": ENDED}, ["cancelled", "deleted"]),
    "14": ({"cancelled_at": "", "did_not_arrive": True}, []),
}
ENDED_ATTENDEES: dict[str, tuple[str | None, dict[str, Any], list[str]]] = {
    "30": ("20", {"cancelled_at": ENDED}, ["cancelled"]),
    "31": ("20", {"archived_at": ENDED}, ["archived"]),
    "32": ("20", {"deleted_at": ENDED}, ["deleted"]),
    "33": ("21", {}, ["booking_archived"]),
    "34": ("22", {"cancelled_at": ENDED}, ["cancelled", "booking_deleted"]),
    "35": ("404", {}, ["booking_unknown"]),
    "36": ("404", {"archived_at": ENDED}, ["archived", "booking_unknown"]),
    "37": ("20", {}, []),
    "38": ("23", {}, ["vanished"]),
    "39": ("23", {"deleted_at": ENDED}, ["deleted", "vanished"]),
    "40": ("24", {}, ["booking_vanished"]),
    "41": (None, {}, ["booking_unknown"]),
}


def test_ended_attendance_does_not_count(clinic: StoredClinic) -> None:
    """An ended appointment, attendee or group does not count. Neither does one that a full sync found missing."""
    ends: dict[str, dict[str, Any]] = {
        "20": {},
        "21": {"archived_at": ENDED},
        "22": {"deleted_at": ENDED},
        "23": {},
        "24": {},
    }
    clinic.store(
        patients=[patient("1")],
        individual_appointments=[came(each, **changes) for each, (changes, _) in ENDED_APPOINTMENTS.items()],
        group_appointments=[group_appointment(each, RECENTLY, **changes) for each, changes in ends.items()],
        attendees=[attendee(i, group, "1", **changes) for i, (group, changes, _) in ENDED_ATTENDEES.items()],
    )
    vanished = "set vanished_at = now(), deleted_at = coalesce(deleted_at, now()) where id in"
    clinic.run(f"update cliniko.appointments {vanished} ('24')")
    clinic.run(f"update cliniko.attendees {vanished} ('38', '39')")
    clinic.run(f"update cliniko.patients {vanished} ('1')")
    found = clinic.explain("1", AS_OF)
    assert reasons(found) == {i: why for i, (*_, why) in (ENDED_APPOINTMENTS | ENDED_ATTENDEES).items()}
    assert all(each.counts == (not each.left_out) for each in found.attendances)
    assert found.counts.recent == 2
    by_id = {each.attendee_id or each.id: each for each in found.attendances}
    assert by_id["10"].left_out == (("cancelled", datetime(2026, 5, 1, tzinfo=UTC)),)
    assert by_id["35"].window == "unknown"
    shown = [(by_id[each].kind, by_id[each].id, by_id[each].window) for each in ("10", "33", "41")]
    assert shown == [("individual", "10", "recent"), ("group", "21", "recent"), ("group", None, "unknown")]
    assert (found.person.state, found.is_active) == ("deleted", False)
    assert found.person.record is not None
    assert found.person.record.vanished_at == found.person.record.deleted_at


def test_group_counts_once_by_its_first_attendee(clinic: StoredClinic) -> None:
    """An attendee of an individual appointment counts only if a group has the same id."""
    clinic.store(
        patients=[patient("1"), patient("2", merged_into="1")],
        individual_appointments=[came("70"), came("71")],
        group_appointments=[group_appointment("20", RECENTLY), group_appointment("71", RECENTLY)],
        attendees=[
            attendee("8", "20", "1", cancelled_at=ENDED),
            *(attendee(each, "20", patient_id) for each, patient_id in (("9", "1"), ("10", "2"), ("100", "1"))),
            attendee("30", "70", "1"),
            attendee("31", "71", "1"),
        ],
    )
    found = clinic.explain("1", AS_OF)
    left_out = {"8": ["cancelled"], "10": ["counted_once"], "100": ["counted_once"]}
    assert reasons(found) == left_out | {"9": [], "70": [], "71": [], "31": []}
    by_attendee = {each.attendee_id: each.counted_attendee_id for each in found.attendances if not each.counts}
    assert by_attendee == {"8": None, "10": "9", "100": "9"}
    assert found.counts == Counts(4, 0, 4, datetime(2026, 6, 1, 9, tzinfo=UTC))


def test_no_shows_follow_the_setting(clinic: StoredClinic) -> None:
    """A group counts if any attendee of the person may have come. A future appointment is not a no-show."""
    arrived = {"20": [False], "21": [False, False], "22": [False, None], "23": [None, False], "24": [False]}
    clinic.store(
        patients=[patient("1")],
        individual_appointments=[came("10", did_not_arrive=True)],
        group_appointments=[group_appointment(each, SOON if each == "24" else RECENTLY) for each in arrived],
        attendees=[
            attendee(f"{group}{n}", group, "1", arrived=each)
            for group, entries in arrived.items()
            for n, each in enumerate(entries)
        ],
    )
    found = clinic.explain("1", AS_OF, WITHOUT_NO_SHOWS)
    first_reasons = {key: left_out[0] for key, left_out in reasons(found).items() if left_out}
    no_shows = dict.fromkeys(("10", "200", "210", "211"), "no_show")
    assert first_reasons == no_shows | {"220": "counted_once", "231": "counted_once"}
    assert found.counts.total == 3
    assert clinic.explain("1", AS_OF).counts.total == 6


def test_merges_are_followed_and_all_ids_counted(clinic: StoredClinic) -> None:
    """A loop of merges is one person, which has the lowest id in the loop."""
    chains = {"7": "8", "8": "10", "9": "10", "10": None, "11": None}
    loops = {"93": "1000", "1000": "91", "91": "1000", "95": "95"}
    clinic.store(
        patients=[patient(each, merged_into=into) for each, into in (chains | loops).items()],
        individual_appointments=[came(f"1{each}", each) for each in (*chains, "1000")],
    )
    found = {each: clinic.explain(each, AS_OF) for each in ("7", "10", "93", "91", "95")}
    assert {each: (one.person.id, one.person.in_loop, one.is_active) for each, one in found.items()} == {
        "7": ("10", False, True),
        "10": ("10", False, True),
        "93": ("91", True, True),
        "91": ("91", True, True),
        "95": ("95", True, False),
    }
    chain = [["7", "8", "10"], ["10"], ["93", "1000", "91"], ["91", "1000"], ["95"]]
    assert [[each.id for each in one.person.chain] for one in found.values()] == chain
    assert [each.merged_into_id for each in found["7"].person.chain] == ["8", "10", None]
    assert [[each.id for each in found[end].person.merged] for end in ("7", "10")] == [["9"], ["7", "8", "9"]]
    assert sorted(each.patient_id for each in found["7"].attendances) == ["10", "7", "8", "9"]
    assert found["10"].counts == found["7"].counts


def test_person_that_is_not_current_is_not_active(clinic: StoredClinic) -> None:
    """Patient 5, who has contacts, was merged into a patient that was not read."""
    clinic.store(
        patients=[
            patient("1", archived_at=ENDED),
            patient("2", deleted_at=ENDED),
            patient("3", archived_at=ENDED, deleted_at=ENDED),
            patient("4"),
            patient("5", "Abe", merged_into="9999"),
        ],
        individual_appointments=[came(f"1{n}", n) for n in ("1", "2", "3", "4", "5", "9999")],
    )
    clinic.add_contacts(contact(1, cliniko_patient_id="5"), contact(2, name="Abe"))
    clinic.compute()
    found = [clinic.explain(each, AS_OF) for each in "12345"]
    assert [each.person.state for each in found] == ["archived", "deleted", "archived", "current", "no_record"]
    assert [each.counts.recent for each in found[:4]] == [1] * 4
    assert [each.is_active for each in found] == [False, False, False, True, False]
    merged = found[-1]
    assert (merged.person.id, merged.person.record, merged.listing) == ("9999", None, "not_active")
    assert (merged.match.stored, merged.match.now, merged.match.passes) == (None, None, ())


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


def test_row_of_an_active_patient_is_compared(named: StoredClinic) -> None:
    found = named.explain("1")
    assert (found.listing, found.changed_after) == ("listed", None)
    assert found.row is not None
    assert (found.row.recent_appointment_count, found.row.search_date_to) == (1, AS_OF)
    assert found.row.contact_id == named.contact_id(1)
    named.store(individual_appointments=[came("11", starts_at=SOON)])
    found = named.explain("1")
    assert found.listing == "differs"
    assert found.row is not None
    assert found.row.differences == ("upcoming_appointment_count", "total_appointment_count", "upcoming_appointments")
    assert found.changed_after is not None
    found = named.explain("1", rules=Rules(timedelta(days=90), count_no_shows=True))
    assert found.row is not None
    assert "search_date_from" in found.row.differences
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
        patients=[
            *(patient(n, name) for n, name in (("2", "Bo"), ("3", "Cy"), ("4", "Cy"), ("6", "Eve"))),
            patient("5", "Di", archived_at=ENDED),
        ],
        individual_appointments=[*(came(f"1{n}", n) for n in "2345"), came("16", "6", "2026-07-01T00:00:00Z")],
    )
    named.add_contacts(contact(3, name="Cy"), contact(6, name="Eve"))
    assert named.explain("2").listing == "unmapped"
    named.compute()
    listings = ["listed", "unmatched", "ambiguous", "ambiguous", "not_active"]
    assert [named.explain(each).listing for each in "12345"] == listings
    named.add_contacts(contact(2, name="Bo"))
    assert named.explain("2").listing == "unmatched"  # the stored mapping does not know the contact yet
    named.compute()
    assert named.explain("2").listing == "listed"
    for each, at, expected in (
        ("6", None, (False, "not_active")),
        ("6", AS_OF + timedelta(days=30), (True, "other_instant")),
        ("1", AS_OF + timedelta(days=300), (False, "listed")),
    ):
        found = named.explain(each, at)
        assert (found.is_active, found.listing) == expected
    named.run("delete from public.active_patients where recent_appointment_count = 1")
    assert named.explain("2", AS_OF).listing == "not_computed"


def test_deleted_contact_is_a_reason(named: StoredClinic) -> None:
    named.delete_contact(1)
    found = named.explain("1")
    assert (found.listing, found.match.contact_absence) == ("out_of_date", "deleted")
    named.run("delete from public.active_patients")
    assert named.explain("1", AS_OF).listing == "contact_gone"
    assert found.match.stored is not None
    assert found.match.now is not None
    assert (found.match.stored.status, found.match.now.status) == ("matched", "unmatched")


def test_unknown_patient_has_rejection_and_mentions(clinic: StoredClinic) -> None:
    clinic.store(
        patients=[patient("1", merged_into="404")],
        individual_appointments=[came("10", "404")],
        attendees=[attendee("30", "20", "404")],
    )
    clinic.add_rejection("patients", "5", "archived_at: not an instant")
    clinic.add_rejection("attendees", "6", "another resource")
    with clinic.database.organization(clinic.id) as connection:
        assert [explain(connection, each, RULES) for each in ("404", "5", "6")] == [None] * 3
        unknown = [unknown_patient(connection, each) for each in ("404", "5", "6")]
    assert [(each.rejected_because, each.mentions) for each in unknown] == [
        (None, 3),
        ("archived_at: not an instant", 0),
        (None, 0),
    ]


def test_explanation_is_read_only(named: StoredClinic) -> None:
    with (  # noqa: PT012
        pytest.raises(DatabaseUnavailableError, match="is read-only at present"),
        named.database.organization(named.id) as connection,
    ):
        explain(connection, "1", RULES)
        connection.execute(sa.text("delete from cliniko.patients"))
    assert named.explain("1").listing == "listed"
