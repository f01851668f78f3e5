"""Tests of the independent computation against hand-written results, without code of the pipeline."""

from datetime import UTC, datetime
from typing import Any

import pytest

from cliniko_pipeline_tests.support.hostile_accounts import (
    ORGANIZATION,
    Account,
    contact,
    contact_id,
    hand_written_account,
    patient,
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


def matched(number: int, method: Any) -> ExpectedMapping:
    return ExpectedMapping("matched", contact_id(number), method)


def ambiguous(candidates: int) -> ExpectedMapping:
    return ExpectedMapping("ambiguous", candidate_count=candidates)


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
    account = hand_written_account()
    rows = expected_active_patients(account.records, account.contacts, account.organization_id, account.as_of)
    assert rows == {
        contact_id(1): ROW_OF_82,
        contact_id(2): ROW_OF_THE_LOOP,
        contact_id(20): row_with_one(20, no_show_only, naive("2026-03-01T00:00:00")),
        contact_id(40): ROW_OF_BIG_SIX,
    }
    assert merge_loops(account.records) == {"91", "94"}


def test_as_of_without_a_time_zone_raises():
    with pytest.raises(ValueError, match="time zone"):
        expected_active_patients({}, [], ORGANIZATION, AS_OF.replace(tzinfo=None))


@pytest.mark.parametrize(
    ("name", "email", "contact_columns", "method"),
    [
        (("Ann", "Lee"), None, {"name": "  ANN\t\u00a0lee\n"}, "name"),
        (("Ann", "Lee"), None, {"name": "\u2003", "first_name": "Ann", "last_name": "Lee"}, "name"),
        (("Ann", "Lee"), None, {"name": "Bob", "first_name": "Ann", "last_name": "Lee"}, None),
        (("Zoe\u0308", None), None, {"name": "ZO\u00cb"}, "name"),
        (("An\u200bn", "Lee"), None, {"name": "Ann Lee"}, None),
        ((None, None), " Stra\u00dfe@Example.ORG\n", {"email": "STRASSE@example.org"}, "email"),
        ((None, None), "\uff41nn@example.org", {"email": "ann@example.org"}, None),
    ],
)
def test_names_and_emails_match_in_every_spelling(name, email, contact_columns, method):
    account = Account({"patients": [patient("82", *name, email)]}, [contact(1, **contact_columns)], AS_OF)
    assert mapping_of(account) == {"82": matched(1, method) if method else UNMATCHED}
