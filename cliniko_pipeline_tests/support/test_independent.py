"""Holds the yardstick against answers written out by hand; nothing here runs the pipeline's own code."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliniko_pipeline_tests.support.hostile_accounts import (
    ORGANIZATION,
    OTHER_ORGANIZATION,
    Account,
    accounts,
    appointment_type,
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
from cliniko_pipeline_tests.support.properties import examples

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


def test_the_hand_written_account_has_the_mapping_written_by_hand():
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


def test_the_hand_written_account_has_two_loops():
    assert merge_loops(hand_written_account().records) == {"91", "94"}


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


def test_the_hand_written_account_has_the_active_patients_written_by_hand():
    no_show_only = details("41", "individual", RECENTLY, did_not_arrive=True)
    assert active_in(hand_written_account()) == {
        contact_id(1): ROW_OF_82,
        contact_id(2): ROW_OF_THE_LOOP,
        contact_id(20): row_with_one(20, no_show_only, naive("2026-03-01T00:00:00")),
        contact_id(40): ROW_OF_BIG_SIX,
    }


def test_without_no_shows_the_hand_written_account_loses_them_and_who_has_nothing_else():
    assert active_in(hand_written_account(), count_no_shows=False) == {
        contact_id(1): ROW_OF_82
        | {
            "recent_appointment_count": 8,
            "total_appointment_count": 12,
            "recent_appointments": [
                one for one in ROW_OF_82["recent_appointments"] if one not in (NO_SHOW, GROUP_NO_SHOW)
            ],
        },
        contact_id(2): ROW_OF_THE_LOOP,
        contact_id(40): ROW_OF_BIG_SIX,
    }


def test_with_a_shorter_window_the_hand_written_account_keeps_who_came_within_it():
    active = active_in(hand_written_account(), activity_window_days=30)
    # 30 days before are 2026-03-01T12:00:00Z: after everybody else's midnight.
    assert active.keys() == {contact_id(1)}
    assert active[contact_id(1)]["recent_appointment_count"] == 9
    assert active[contact_id(1)]["total_appointment_count"] == 14
    assert active[contact_id(1)]["search_date_from"] == naive("2026-03-01T12:00:00")


# --- Rule by rule: records ---------------------------------------------------------------------------------


def test_an_as_of_without_a_time_zone_is_refused():
    with pytest.raises(ValueError, match="time zone"):
        expected_active_patients({}, [], ORGANIZATION, AS_OF.replace(tzinfo=None))


def test_an_as_of_in_another_time_zone_is_the_same_moment():
    account = hand_written_account()
    elsewhere = replace(account, as_of=datetime.fromisoformat("2026-03-31T22:00:00+10:00"))
    assert active_in(elsewhere) == active_in(account)


def test_an_empty_account_has_no_numbers():
    assert mapping_of(account_of(contact(1, name="Ann Lee"))) == {}
    assert active_in(account_of(contact(1, name="Ann Lee"))) == {}
    assert merge_loops({}) == frozenset()


@pytest.mark.parametrize(
    "broken",
    [
        {"id": None},
        {"id": ""},
        {"id": "82a"},
        {"id": 82.0},
        {"id": True},
        {"created_at": None},
        {"created_at": ""},
        {"created_at": "soon"},
        {"updated_at": None},
        {"updated_at": "2026-02-30T00:00:00Z"},
        {"archived_at": "2026-01-01"},
        {"merged_at": "0001-01-01T00:00:00+10:00"},
    ],
)
def test_a_patient_that_cannot_be_read_does_not_exist(broken):
    assert mapping_of(account_of(patients=[patient("82", **broken), patient("83")])) == {"83": UNMATCHED}


@pytest.mark.parametrize("field", ["id", "created_at", "updated_at"])
def test_a_patient_without_a_required_field_does_not_exist(field):
    record = patient("82")
    del record[field]
    assert mapping_of(account_of(patients=[record])) == {}


@pytest.mark.parametrize("record_id", ["82", 82, "082", "8\x002"])
def test_ids_are_the_same_in_every_form(record_id):
    assert mapping_of(account_of(patients=[patient(record_id)])).keys() == {"82"}


def test_ids_of_twenty_digits_are_not_rounded():
    ids = ["99999999999999999998", "99999999999999999999"]
    assert list(mapping_of(account_of(patients=[patient(i) for i in ids]))) == ids


# --- Rule by rule: mapping ---------------------------------------------------------------------------------


def mapping_of_one(first_name: str | None, last_name: str | None, /, **columns: str | None) -> str:
    account = account_of(contact(1, **columns), patients=[patient("82", first_name, last_name)])
    return mapping_of(account)["82"].status


@pytest.mark.parametrize(
    ("first_name", "last_name", "name"),
    [
        ("Ann", "Lee", "  ANN\t\u00a0lee\n"),
        ("Ann", None, "ann"),
        (None, "Lee", "LEE"),
        ("Stra\u00dfe", "Gro\u00df", "STRASSE GROSS"),
        ("Zoe\u0308", "", "ZO\u00cb"),
        ("\uff21\uff4e\uff4e", "", "ann"),
        ("\u0130pek", "", "i\u0307pek"),
        ("\ud83d", "Lee", "\ufffd Lee"),
    ],
)
def test_names_are_the_same_however_they_are_written(first_name, last_name, name):
    assert mapping_of_one(first_name, last_name, name=name) == "matched"
    assert mapping_of_one(first_name, last_name, name=" ", first_name=name) == "matched"


@pytest.mark.parametrize(
    ("first_name", "last_name", "name"),
    [("\u0130pek", "", "ipek"), ("Ann", "Lee", "AnnLee"), ("Ann", "Lee", "Lee Ann"), ("An\u200bn", "Lee", "Ann Lee")],
)
def test_other_names_stay_other_names(first_name, last_name, name):
    assert mapping_of_one(first_name, last_name, name=name) == "unmatched"


def test_a_contacts_first_and_last_name_count_only_without_a_name():
    assert mapping_of_one("Ann", "Lee", name="Bob", first_name="Ann", last_name="Lee") == "unmatched"
    assert mapping_of_one("Ann", "Lee", name="\u2003", first_name="Ann", last_name="Lee") == "matched"


@pytest.mark.parametrize(
    ("email", "other", "status"),
    [
        (" Ann@Example.ORG\n", "ann@example.org", "matched"),
        ("stra\u00dfe@example.org", "STRASSE@example.org", "matched"),
        ("\uff41nn@example.org", "ann@example.org", "unmatched"),
        ("a nn@example.org", "ann@example.org", "unmatched"),
        ("", "", "unmatched"),
        (" ", " ", "unmatched"),
        (None, None, "unmatched"),
        ("\0", "", "unmatched"),
    ],
)
def test_emails_are_trimmed_and_case_folded_and_nothing_more(email, other, status):
    account = account_of(contact(1, email=other), patients=[patient("82", email=email)])
    assert mapping_of(account)["82"].status == status


def test_two_contacts_of_the_same_email_are_told_apart_by_name():
    account = account_of(
        contact(1, email="fam@example.org", name="Ann Lee"),
        contact(2, email="fam@example.org", name="Bob Lee"),
        patients=[patient("82", "Ann", "Lee", "fam@example.org")],
    )
    assert mapping_of(account) == {"82": matched(1, "email")}


def test_two_patients_of_equal_name_and_email_are_not_told_apart():
    account = account_of(
        contact(1, email="fam@example.org", name="Ann Lee"),
        patients=[patient(i, "Ann", "Lee", "fam@example.org") for i in ("82", "83")],
    )
    assert mapping_of(account) == {"82": ambiguous(1), "83": ambiguous(1)}


def test_an_ambiguous_patient_does_not_stand_in_the_way_of_a_later_pass():
    account = account_of(
        contact(1, email="fam@example.org", name="Bob Lee"),
        contact(2, email="fam@example.org", name="Bob Lee"),
        contact(3, name="Ann Lee"),
        patients=[patient("82", "Ann", "Lee", "fam@example.org"), patient("83", "Ann", "Lee")],
    )
    assert mapping_of(account) == {"82": ambiguous(2), "83": matched(3, "name")}


def test_a_contact_matched_by_email_is_not_free_for_its_name():
    account = account_of(
        contact(1, email="ann@example.org", name="Bob Lee"),
        patients=[patient("82", "Ann", "Lee", "ann@example.org"), patient("83", "Bob", "Lee")],
    )
    assert mapping_of(account) == {"82": matched(1, "email"), "83": UNMATCHED}


def test_a_blank_name_is_equal_to_no_other_blank_name():
    account = account_of(
        contact(1, cliniko_patient_id="82", name=""),
        contact(2, cliniko_patient_id="82", name="Ann"),
        patients=[patient("82", "", "")],
    )
    assert mapping_of(account) == {"82": ambiguous(2)}


def test_a_contact_that_names_an_archived_patient_is_free_for_nobody_else():
    account = account_of(
        contact(1, cliniko_patient_id="82", name="Ann Lee", email="ann@example.org"),
        patients=[
            patient("82", "Ann", "Lee", archived_at=RECENTLY),
            patient("83", "Ann", "Lee", "ann@example.org"),
        ],
    )
    assert mapping_of(account) == {"82": matched(1, "cliniko_patient_id"), "83": UNMATCHED}


def test_several_contacts_that_name_one_persons_merged_patients_are_one_group():
    account = account_of(
        contact(1, cliniko_patient_id="81", name="Ann Lee"),
        contact(2, cliniko_patient_id="82", name="Ann Before"),
        patients=[patient("81", "Ann", "Before", merged_into="82"), patient("82", "Ann", "Lee")],
    )
    assert mapping_of(account) == {"82": matched(1, "cliniko_patient_id")}


def test_a_chain_that_ends_at_a_record_set_aside_ends_at_nobody():
    account = account_of(
        contact(1, cliniko_patient_id="81", name="Cy Lee"),
        patients=[
            patient("81", "Ann", "Lee", merged_into="82"),
            patient("82", "Ann", "Lee", created_at=""),
            patient("83", "Cy", "Lee"),
        ],
    )
    assert mapping_of(account) == {"83": matched(1, "name")}


@pytest.mark.parametrize("no_link", [None, "", {}, {"links": None}, {"links": {}}, {"links": {"self": ""}}])
def test_a_patient_whose_merge_link_is_empty_is_not_merged(no_link):
    record = patient("81", merged_at=RECENTLY, merged_with_patient=no_link)
    assert mapping_of(account_of(patients=[record])).keys() == {"81"}


def test_a_patient_that_leads_into_a_loop_does_not_stand_in_for_it():
    loop = [patient("91", merged_into="1000"), patient("1000", merged_into="91")]
    account = account_of(patients=[patient("5", merged_into="1000"), *loop])
    assert mapping_of(account).keys() == merge_loops(account.records) == {"91"}


def test_a_long_chain_and_a_long_loop_are_followed_to_their_end():
    chain = [patient(str(i), merged_into=str(i + 1)) for i in range(1, 20_000)]
    loop = [patient(str(i), merged_into=str(30_000 + (i + 1) % 10_000)) for i in range(30_000, 40_000)]
    account = account_of(patients=[*chain, patient("20000"), *loop])
    assert mapping_of(account) == {"20000": UNMATCHED, "30000": UNMATCHED}
    assert merge_loops(account.records) == {"30000"}


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
def test_the_window_includes_both_its_ends(starts_at, recent, upcoming):
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
        ("2026-03-01T00:00:00.000Z", "2026-03-01T00:00:00Z"),
        ("2026-03-01T00:00:00.120000Z", "2026-03-01T00:00:00.12Z"),
        ("2026-03-01T00:00:00.000001Z", "2026-03-01T00:00:00.000001Z"),
        ("2026-03-01T10:00:00+10:00", "2026-03-01T00:00:00Z"),
    ],
)
def test_instants_are_rendered_in_utc_without_trailing_zeros(wire, rendered):
    row = row_of_one(individual_appointments=[individual_appointment("1", "82", wire, ends_at=wire)])
    assert row is not None
    assert row["recent_appointments"] == [details("1", "individual", rendered, rendered)]


@pytest.mark.parametrize("field", ["cancelled_at", "archived_at", "deleted_at"])
def test_an_appointment_that_was_cancelled_archived_or_deleted_counts_only_if_the_field_is_null(field):
    ended = individual_appointment("1", "82", RECENTLY, **{field: RECENTLY})
    assert row_of_one(individual_appointments=[ended]) is None
    assert row_of_one(individual_appointments=[ended | {field: ""}]) is not None


@pytest.mark.parametrize("field", ["starts_at", "ends_at", "cancelled_at", "archived_at", "deleted_at"])
def test_an_appointment_with_an_unreadable_instant_is_set_aside(field):
    appointment = individual_appointment("1", "82", RECENTLY) | {field: "2026-01-01T25:00:00Z"}
    assert row_of_one(individual_appointments=[appointment]) is None


@pytest.mark.parametrize("field", ["cancelled_at", "archived_at", "deleted_at"])
def test_an_attendee_that_was_cancelled_archived_or_deleted_counts_only_if_the_field_is_null(field):
    group = group_appointment("20", RECENTLY)
    ended = attendee("201", "20", "82", **{field: RECENTLY})
    assert row_of_one(group_appointments=[group], attendees=[ended]) is None
    assert row_of_one(group_appointments=[group], attendees=[ended | {field: ""}]) is not None
    assert row_of_one(group_appointments=[group], attendees=[ended, attendee("202", "20", "82")]) is not None


@pytest.mark.parametrize(
    ("arrived", "starts_at", "did_not_arrive"),
    [
        ([False], RECENTLY, True),
        ([False, False], RECENTLY, True),
        ([False, None], RECENTLY, False),
        ([False, True], RECENTLY, False),
        ([None], RECENTLY, False),
        ([""], RECENTLY, False),
        ([False], "2026-03-31T12:00:00Z", True),
        ([False], "2026-03-31T12:00:01Z", False),
    ],
)
def test_who_did_not_arrive_in_a_group(arrived, starts_at, did_not_arrive):
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


def test_a_cancelled_attendee_has_no_say_in_whether_the_person_arrived():
    row = row_of_one(
        group_appointments=[group_appointment("20", RECENTLY)],
        attendees=[
            attendee("201", "20", "82", arrived=True, cancelled_at=RECENTLY),
            attendee("202", "20", "82", arrived=False),
        ],
    )
    assert row is not None
    assert row["recent_appointments"] == [details("20", "group", RECENTLY, did_not_arrive=True)]


def test_two_people_in_one_group_count_once_each():
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
def test_a_practitioner_is_called_by_the_first_name_that_is_not_blank(fields, name):
    row = row_of_one(
        individual_appointments=[individual_appointment("1", "82", RECENTLY, practitioner=link("practitioners", 7))],
        practitioners=[practitioner("7", **fields)],
    )
    assert row is not None
    assert row["recent_appointments"][0]["practitioner"] == name


@pytest.mark.parametrize(("name", "shown"), [("Standard", "Standard"), (" A\0B ", " AB "), ("", None), (" ", None)])
def test_an_appointment_type_is_called_by_its_name_as_it_stands(name, shown):
    row = row_of_one(
        individual_appointments=[
            individual_appointment("1", "82", RECENTLY, appointment_type=link("appointment_types", 3))
        ],
        appointment_types=[appointment_type("3", name)],
    )
    assert row is not None
    assert row["recent_appointments"][0]["appointment_type"] == shown


@pytest.mark.parametrize("field", ["archived_at", "deleted_at"])
def test_an_archived_or_deleted_person_is_mapped_but_not_active(field):
    account = account_of(
        contact(1, cliniko_patient_id="82"),
        patients=[patient("82", **{field: RECENTLY})],
        individual_appointments=[individual_appointment("1", "82", RECENTLY)],
    )
    assert mapping_of(account)["82"].status == "matched"
    assert active_in(account) == {}


# --- What holds for every account --------------------------------------------------------------------------

every_account = settings(max_examples=examples(60))


@every_account
@given(accounts(bad_records=True))
def test_no_contact_belongs_to_two_people_and_every_mapping_is_consistent(account):
    mapping = mapping_of(account)
    own = {row["id"] for row in account.contacts if row["organization_id"] == account.organization_id}
    taken = [one.contact_id for one in mapping.values() if one.status == "matched"]
    assert len(taken) == len(set(taken))
    assert set(taken) <= own
    for one in mapping.values():
        assert (one.status == "matched") == (one.contact_id is not None) == (one.method is not None)
        assert (one.status == "ambiguous") == (one.candidate_count is not None)
        assert one.candidate_count is None or 1 <= one.candidate_count <= len(own)


@every_account
@given(accounts(bad_records=True))
def test_active_patients_are_matched_and_their_counts_are_those_of_their_lists(account):
    matched_contacts = {one.contact_id for one in mapping_of(account).values() if one.status == "matched"}
    active = active_in(account)
    assert active.keys() <= matched_contacts
    for row in active.values():
        recent, upcoming = row["recent_appointments"], row["upcoming_appointments"]
        assert len(recent) == row["recent_appointment_count"] >= 1
        assert len(upcoming) == row["upcoming_appointment_count"]
        assert row["total_appointment_count"] >= len(recent) + len(upcoming)
        assert row["search_date_from"] <= row["last_appointment_date"] <= row["search_date_to"]
        assert row["search_date_to"] - row["search_date_from"] == timedelta(days=60)
        assert len({(one["kind"], one["id"]) for one in recent + upcoming}) == len(recent) + len(upcoming)


def shuffled(account: Account, seed: int) -> Account:
    order = Random(seed)

    def shuffle(items: Any) -> list[Any]:
        return order.sample(list(items), len(items))

    return replace(
        account,
        records={resource: shuffle(found) for resource, found in account.records.items()},
        contacts=shuffle(account.contacts),
    )


def only_own_contacts(account: Account) -> Account:
    own = [row for row in account.contacts if row["organization_id"] != OTHER_ORGANIZATION]
    return replace(account, contacts=own)


def empty_strings_as_nulls(account: Account) -> Account:
    records = {
        resource: [{field: None if value == "" else value for field, value in record.items()} for record in found]
        for resource, found in account.records.items()
    }
    return replace(account, records=records)


@every_account
@given(accounts(bad_records=True), st.integers(0, 2**32))
def test_the_order_of_records_and_contacts_changes_nothing(account, seed):
    other = shuffled(account, seed)
    assert mapping_of(other) == mapping_of(account)
    assert active_in(other) == active_in(account)
    assert merge_loops(other.records) == merge_loops(account.records)


@pytest.mark.parametrize("change", [only_own_contacts, empty_strings_as_nulls])
@every_account
@given(account=accounts())
def test_what_means_nothing_changes_nothing(change: Callable[[Account], Account], account):
    other = change(account)
    assert mapping_of(other) == mapping_of(account)
    assert active_in(other) == active_in(account)
