"""The independent computation, compared with answers written by hand; no code of the pipeline runs here."""

from datetime import UTC, datetime
from typing import Any

import pytest

from cliniko_pipeline_tests.support.hostile_accounts import (
    ORGANIZATION,
    Account,
    attendee,
    contact,
    contact_id,
    group_appointment,
    hand_written_account,
    individual_appointment,
    link,
    patient,
    practitioner,
)
from cliniko_pipeline_tests.support.independent import (
    UNMATCHED,
    ExpectedMapping,
    expected_active_patients,
    expected_contact_mapping,
    merge_loops,
)

pytestmark = pytest.mark.slow
AS_OF = datetime(2026, 3, 31, 12, tzinfo=UTC)
RECENTLY = "2026-03-01T00:00:00Z"

naive = datetime.fromisoformat


def mapping_of(account: Account) -> dict[str, ExpectedMapping]:
    return expected_contact_mapping(account.records, account.contacts, account.organization_id)


def active_in(account: Account, **settings: Any) -> dict[Any, dict[str, Any]]:
    return expected_active_patients(
        account.records, account.contacts, account.organization_id, account.as_of, **settings
    )


def account_of(*contacts: dict[str, Any], **records: list[dict[str, Any]]) -> Account:
    return Account(records, contacts, AS_OF)


def matched(number: int, method: Any) -> ExpectedMapping:
    return ExpectedMapping("matched", contact_id(number), method)


def ambiguous(candidates: int) -> ExpectedMapping:
    return ExpectedMapping("ambiguous", candidate_count=candidates)


# --- The account written by hand ---------------------------------------------------------------------------


def test_mapping_of_the_hand_written_account():
    assert mapping_of(hand_written_account()) == {
        "82": matched(1, "cliniko_patient_id"),
        "91": matched(2, "cliniko_patient_id"),
        "94": UNMATCHED,
        "96": matched(3, "name"),
        "97": matched(4, "email"),
        "98": UNMATCHED,
        "100": matched(10, "cliniko_patient_id"),
        "101": matched(11, "cliniko_patient_id"),
        "102": UNMATCHED,
        "103": ambiguous(2),
        "104": ambiguous(2),
        "105": matched(18, "name"),
        "131": matched(19, "cliniko_patient_id"),
        "9223372036854775806": matched(40, "cliniko_patient_id"),
        "9223372036854775807": UNMATCHED,
        "110": matched(20, "email"),
        "111": matched(21, "email"),
        "112": matched(22, "email"),
        "113": matched(23, "name"),
        "114": ambiguous(1),
        "115": ambiguous(1),
        "116": matched(24, "name"),
        "117": ambiguous(2),
        "118": matched(27, "email"),
        "119": ambiguous(1),
        "120": matched(30, "name"),
        "121": ambiguous(1),
        "122": ambiguous(1),
        "123": ambiguous(2),
        "124": UNMATCHED,
        "125": UNMATCHED,
        "126": matched(35, "name"),
        "127": UNMATCHED,
        "128": matched(37, "name"),
        "130": matched(38, "name"),
    }


def details(
    record_id: str,
    kind: str,
    starts_at: str,
    ends_at: str | None = None,
    appointment_type: str | None = None,
    practitioner: str | None = None,
    did_not_arrive: bool = False,
) -> dict[str, Any]:
    return {
        "id": record_id,
        "kind": kind,
        "starts_at": starts_at,
        "ends_at": ends_at,
        "appointment_type": appointment_type,
        "practitioner": practitioner,
        "did_not_arrive": did_not_arrive,
    }


NO_SHOW = details("8", "individual", "2026-03-02T09:00:00Z", did_not_arrive=True)
GROUP_NO_SHOW = details("25", "group", "2026-03-06T10:00:00Z", None, None, "First Last", did_not_arrive=True)

ROW_OF_82 = {
    "contact_id": contact_id(1),
    "recent_appointment_count": 10,
    "upcoming_appointment_count": 3,
    "total_appointment_count": 14,
    "last_appointment_date": naive("2026-03-31T12:00:00"),
    "recent_appointments": [
        details("1", "individual", "2026-03-31T12:00:00Z", "2026-03-31T12:45:00Z", "Standard", "Dr Ray"),
        details("9", "individual", "2026-03-10T09:00:00.5Z", "2026-03-10T09:30:00Z"),
        details("10", "individual", "2026-03-10T09:00:00.5Z"),
        details("28", "individual", "2026-03-08T10:00:00Z"),
        details("28", "group", "2026-03-08T10:00:00Z"),
        details("26", "group", "2026-03-07T10:00:00Z"),
        GROUP_NO_SHOW,
        details("20", "group", "2026-03-05T10:00:00Z", None, "Standard"),
        NO_SHOW,
        details("2", "individual", "2026-01-30T12:00:00Z", None, None, "Label Lo"),
    ],
    "upcoming_appointments": [
        details("4", "individual", "2026-03-31T12:00:01Z", None, "Old type", "First Last"),
        details("27", "group", "2026-04-02T10:00:00Z", "2026-04-02T11:00:00Z"),
        details("31", "individual", "2026-04-02T10:00:00Z"),
    ],
    "search_date_from": naive("2026-01-30T12:00:00"),
    "search_date_to": naive("2026-03-31T12:00:00"),
    "organization_id": "hostile-clinic",
}


def row_with_one(number: int, appointment: dict[str, Any], last: datetime) -> dict[str, Any]:
    return {
        "contact_id": contact_id(number),
        "recent_appointment_count": 1,
        "upcoming_appointment_count": 0,
        "total_appointment_count": 1,
        "last_appointment_date": last,
        "recent_appointments": [appointment],
        "upcoming_appointments": [],
        "search_date_from": naive("2026-01-30T12:00:00"),
        "search_date_to": naive("2026-03-31T12:00:00"),
        "organization_id": "hostile-clinic",
    }


ROW_OF_THE_LOOP = row_with_one(2, details("45", "group", "2026-02-15T08:00:00Z"), naive("2026-02-15T08:00:00"))
ROW_OF_BIG_SIX = row_with_one(40, details("9223372036854775807", "individual", RECENTLY), naive("2026-03-01T00:00:00"))


def test_active_patients_of_the_hand_written_account():
    no_show_only = details("41", "individual", RECENTLY, did_not_arrive=True)
    assert active_in(hand_written_account()) == {
        contact_id(1): ROW_OF_82,
        contact_id(2): ROW_OF_THE_LOOP,
        contact_id(20): row_with_one(20, no_show_only, naive("2026-03-01T00:00:00")),
        contact_id(40): ROW_OF_BIG_SIX,
    }
    assert merge_loops(hand_written_account().records) == {"91", "94"}
    # 30 days before are 2026-03-01T12:00:00Z: later than everybody else's midnight.
    within_30_days = active_in(hand_written_account(), activity_window_days=30)
    assert within_30_days.keys() == {contact_id(1)}
    assert within_30_days[contact_id(1)]["search_date_from"] == naive("2026-03-01T12:00:00")


# --- Rule by rule: records ---------------------------------------------------------------------------------


def test_as_of_without_a_time_zone_raises():
    with pytest.raises(ValueError, match="time zone"):
        expected_active_patients({}, [], ORGANIZATION, AS_OF.replace(tzinfo=None))


@pytest.mark.parametrize(
    "broken",
    [
        {"id": None},
        {"id": "82a"},
        {"created_at": None},
        {"updated_at": "2026-02-30T00:00:00Z"},
    ],
)
def test_rejected_patient_does_not_exist(broken):
    assert mapping_of(account_of(patients=[patient("82", **broken), patient("83")])) == {"83": UNMATCHED}


@pytest.mark.parametrize("record_id", ["82", 82, "082", "8\x002"])
def test_ids_are_compared_as_numbers(record_id):
    assert mapping_of(account_of(patients=[patient(record_id)])).keys() == {"82"}


# --- Rule by rule: mapping ---------------------------------------------------------------------------------


def mapping_of_one(first_name: str | None, last_name: str | None, /, **columns: str | None) -> str:
    account = account_of(contact(1, **columns), patients=[patient("82", first_name, last_name)])
    return mapping_of(account)["82"].status


@pytest.mark.parametrize(
    ("first_name", "last_name", "name"),
    [
        ("Ann", "Lee", "  ANN\t\u00a0lee\n"),
        (None, "Lee", "LEE"),
        ("Stra\u00dfe", "Gro\u00df", "STRASSE GROSS"),
        ("Zoe\u0308", "", "ZO\u00cb"),
        ("\u0130pek", "", "i\u0307pek"),
        ("\ud83d", "Lee", "\ufffd Lee"),
    ],
)
def test_names_match_in_every_spelling(first_name, last_name, name):
    assert mapping_of_one(first_name, last_name, name=name) == "matched"
    assert mapping_of_one(first_name, last_name, name=" ", first_name=name) == "matched"


@pytest.mark.parametrize(
    ("first_name", "last_name", "name"),
    [("\u0130pek", "", "ipek"), ("Ann", "Lee", "AnnLee"), ("Ann", "Lee", "Lee Ann"), ("An\u200bn", "Lee", "Ann Lee")],
)
def test_other_names_do_not_match(first_name, last_name, name):
    assert mapping_of_one(first_name, last_name, name=name) == "unmatched"


def test_name_parts_count_only_without_a_name():
    assert mapping_of_one("Ann", "Lee", name="Bob", first_name="Ann", last_name="Lee") == "unmatched"
    assert mapping_of_one("Ann", "Lee", name="\u2003", first_name="Ann", last_name="Lee") == "matched"


@pytest.mark.parametrize(
    ("email", "other", "status"),
    [
        (" Ann@Example.ORG\n", "ann@example.org", "matched"),
        ("stra\u00dfe@example.org", "STRASSE@example.org", "matched"),
        ("\uff41nn@example.org", "ann@example.org", "unmatched"),
        ("a nn@example.org", "ann@example.org", "unmatched"),
        (" ", " ", "unmatched"),
    ],
)
def test_emails_are_trimmed_and_case_folded(email, other, status):
    account = account_of(contact(1, email=other), patients=[patient("82", email=email)])
    assert mapping_of(account)["82"].status == status


def test_contact_matched_by_email_is_not_matched_by_name():
    account = account_of(
        contact(1, email="ann@example.org", name="Bob Lee"),
        patients=[patient("82", "Ann", "Lee", "ann@example.org"), patient("83", "Bob", "Lee")],
    )
    assert mapping_of(account) == {"82": matched(1, "email"), "83": UNMATCHED}


# --- Rule by rule: attendances -----------------------------------------------------------------------------


def row_of_one(count_no_shows: bool = True, **records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of patient 82, who has contact 1."""
    account = account_of(contact(1, cliniko_patient_id="82"), patients=[patient("82")], **records)
    return active_in(account, count_no_shows=count_no_shows).get(contact_id(1))


@pytest.mark.parametrize(
    ("starts_at", "recent", "upcoming"),
    [
        ("2026-01-30T11:59:59.999999Z", 0, 0),
        ("2026-01-30T12:00:00Z", 1, 0),
        ("2026-03-31T12:00:00Z", 1, 0),
        ("2026-03-31T12:00:00.000001Z", 0, 1),
        ("2026-03-31T22:00:00+10:00", 1, 0),
    ],
)
def test_window_includes_both_ends(starts_at, recent, upcoming):
    row = row_of_one(
        individual_appointments=[
            individual_appointment("1", "82", starts_at),
            individual_appointment("2", "82", RECENTLY),
        ]
    )
    assert row is not None
    counts = (row["recent_appointment_count"], row["upcoming_appointment_count"], row["total_appointment_count"])
    assert counts == (recent + 1, upcoming, 2)


@pytest.mark.parametrize(
    ("wire", "rendered"),
    [
        ("2026-03-01T00:00:00.120000Z", "2026-03-01T00:00:00.12Z"),
        ("2026-03-01T10:00:00+10:00", "2026-03-01T00:00:00Z"),
    ],
)
def test_instants_are_rendered_in_utc_without_trailing_zeros(wire, rendered):
    row = row_of_one(individual_appointments=[individual_appointment("1", "82", wire, ends_at=wire)])
    assert row is not None
    assert row["recent_appointments"] == [details("1", "individual", rendered, rendered)]


@pytest.mark.parametrize("field", ["cancelled_at", "archived_at", "deleted_at"])
def test_ended_appointments_and_attendees_do_not_count(field):
    ended = individual_appointment("1", "82", RECENTLY, **{field: RECENTLY})
    assert row_of_one(individual_appointments=[ended]) is None
    assert row_of_one(individual_appointments=[ended | {field: ""}]) is not None

    group = group_appointment("20", RECENTLY)
    left = attendee("201", "20", "82", **{field: RECENTLY})
    assert row_of_one(group_appointments=[group], attendees=[left]) is None
    assert row_of_one(group_appointments=[group], attendees=[left, attendee("202", "20", "82")]) is not None


@pytest.mark.parametrize("field", ["archived_at", "deleted_at"])
def test_ended_patient_is_mapped_but_not_active(field):
    account = account_of(
        contact(1, cliniko_patient_id="82"),
        patients=[patient("82", **{field: RECENTLY})],
        individual_appointments=[individual_appointment("1", "82", RECENTLY)],
    )
    assert mapping_of(account)["82"].status == "matched"
    assert active_in(account) == {}


@pytest.mark.parametrize("field", ["starts_at", "ends_at", "cancelled_at", "archived_at", "deleted_at"])
def test_rejected_appointment_does_not_count(field):
    appointment = individual_appointment("1", "82", RECENTLY) | {field: "2026-01-01T25:00:00Z"}
    assert row_of_one(individual_appointments=[appointment]) is None


@pytest.mark.parametrize(
    ("arrived", "starts_at", "did_not_arrive"),
    [
        ([False], RECENTLY, True),
        ([False, None], RECENTLY, False),
        ([False, True], RECENTLY, False),
        ([False], "2026-03-31T12:00:00Z", True),
        ([False], "2026-03-31T12:00:01Z", False),
    ],
)
def test_no_show_in_a_group(arrived, starts_at, did_not_arrive):
    records = {
        "individual_appointments": [individual_appointment("1", "82", "2026-02-01T00:00:00Z")],
        "group_appointments": [group_appointment("20", starts_at)],
        "attendees": [attendee(str(201 + i), "20", "82", arrived=value) for i, value in enumerate(arrived)],
    }
    row = row_of_one(**records)
    assert row is not None
    (shown,) = [one for one in row["recent_appointments"] + row["upcoming_appointments"] if one["kind"] == "group"]
    assert shown["did_not_arrive"] is did_not_arrive

    without_no_shows = row_of_one(count_no_shows=False, **records)
    assert without_no_shows is not None
    assert without_no_shows["total_appointment_count"] == (1 if did_not_arrive else 2)


def test_each_person_of_a_group_counts_once():
    account = account_of(
        contact(1, cliniko_patient_id="82"),
        contact(2, cliniko_patient_id="83"),
        patients=[patient("82"), patient("83")],
        group_appointments=[group_appointment("20", RECENTLY)],
        attendees=[attendee("201", "20", "82"), attendee("202", "20", "83"), attendee("203", "20", "82")],
    )
    totals = {key: row["total_appointment_count"] for key, row in active_in(account).items()}
    assert totals == {contact_id(1): 1, contact_id(2): 1}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"display_name": " Dr A ", "label": "B"}, "Dr A"),
        ({"display_name": "", "label": "B"}, "B"),
        ({"first_name": "C", "last_name": None}, "C"),
        ({"first_name": "", "last_name": "D"}, "D"),
        ({"first_name": " ", "last_name": "\0"}, None),
    ],
)
def test_practitioner_has_the_first_name_that_is_not_blank(fields, name):
    row = row_of_one(
        individual_appointments=[individual_appointment("1", "82", RECENTLY, practitioner=link("practitioners", 7))],
        practitioners=[practitioner("7", **fields)],
    )
    assert row is not None
    assert row["recent_appointments"][0]["practitioner"] == name
