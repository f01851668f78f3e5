from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta

import pytest

from cliniko_pipeline.sandbox.accounts.demo import demo_organizations
from cliniko_pipeline.sandbox.accounts.generated import CLASS_SIZE, generated_account
from cliniko_pipeline.sandbox.accounts.records import instant
from cliniko_pipeline_tests.support.sandboxes import ANCHOR, demo

NOW = instant(ANCHOR)
RECENT = instant(ANCHOR - timedelta(days=60))


@pytest.fixture(scope="module")
def everything():
    return {one.id: one.account.records for one in demo()}


@pytest.fixture
def surf(everything):
    return everything["surf-rehab"]


def related(record, relation):
    return record[relation]["links"]["self"].rsplit("/", 1)[1]


def counts(record):
    return not (record.get("cancelled_at") or record["archived_at"] or record["deleted_at"])


@pytest.mark.slow
def test_demo_organizations_are_the_same_for_an_anchor():
    again = [(one.account.records, one.contacts) for one in demo_organizations(ANCHOR)]
    assert again == [(one.account.records, one.contacts) for one in demo()]
    placed = [(one.id, one.name, one.account.name, one.account.shard) for one in demo()]
    assert placed == [
        ("surf-rehab", "Surf Rehab", "surf-rehab", "au4"),
        ("harbour-pilates", "Harbour Pilates", "harbour-pilates", "uk2"),
        ("old-mill-physio", "Old Mill Physio", "old-mill-physio", "au1"),
    ]
    assert [one.account.api_key.endswith(f"-{one.account.shard}") for one in demo()] == [True, True, False]


def test_surf_rehab_has_631_patients_two_fifths_active(surf, everything):
    assert len(surf["patients"]) == 631
    # Ids are too large for floats, and sort correctly only as numbers.
    assert {len(one) for one in surf["patients"]} == {18, 19}
    assert min(map(int, surf["patients"])) > 2**53
    assert all(len(one) <= 3 for one in everything["old-mill-physio"]["patients"])
    # One clock second has more records than a page.
    for resource in ("patients", "individual_appointments"):
        assert Counter(one["updated_at"] for one in surf[resource].values()).most_common(1)[0][1] > 100
    assert 5000 < len(surf["individual_appointments"]) < 7000
    active = {
        related(one, "patient")
        for one in surf["individual_appointments"].values()
        if counts(one) and RECENT <= one["starts_at"] <= NOW
    }
    assert 0.37 < sum(counts(surf["patients"][one]) for one in active) / 631 < 0.43


@pytest.mark.parametrize(
    "anchor",
    [
        ANCHOR,
        pytest.param(datetime(2025, 2, 28, 0, 30, tzinfo=UTC), marks=pytest.mark.slow),
        pytest.param(datetime(2028, 2, 29, 23, tzinfo=UTC), marks=pytest.mark.slow),
    ],
)
def test_records_change_between_creation_and_anchor(anchor):
    for organization in demo() if anchor == ANCHOR else demo_organizations(anchor):
        for resource, rows in organization.account.records.items():
            for one in rows.values():
                assert one["created_at"] <= one["updated_at"] <= instant(anchor), (resource, one["id"])


def test_links_of_bookings_and_attendees_lead_to_records(everything):
    for records in everything.values():
        attendees = defaultdict(list)
        for one in records["attendees"].values():
            attendees[related(one, "booking")].append(one)
            assert related(one, "patient") in records["patients"]
        bookings = {**records["individual_appointments"], **records["group_appointments"]}
        assert set(attendees) <= set(bookings)
        for one in bookings.values():
            assert related(one, "practitioner") in records["practitioners"]
            assert related(one, "business") in records["businesses"]
            assert related(one, "appointment_type") in records["appointment_types"]
        for appointment in records["individual_appointments"].values():
            (only,) = attendees[appointment["id"]]
            assert related(only, "patient") == related(appointment, "patient")
            assert bool(only["cancelled_at"]) == bool(appointment["cancelled_at"])
        for one in records["group_appointments"].values():
            places = {related(each, "patient") for each in attendees[one["id"]] if counts(each)}
            assert set(one["patient_ids"]) == places
            assert len(places) <= one["max_attendees"]


def test_appointments_have_every_state(surf):
    appointments = surf["individual_appointments"].values()
    for state in ("cancelled_at", "archived_at", "deleted_at", "did_not_arrive"):
        assert any(one[state] for one in appointments), state
    upcoming = [one for one in appointments if one["starts_at"] > NOW]
    assert 0 < sum(map(counts, upcoming)) < len(upcoming)
    assert any(one["cancelled_at"] == "" for one in appointments)


def test_patients_are_archived_deleted_and_merged(everything):
    for records in everything.values():
        patients = records["patients"]
        merged = {one["id"]: related(one, "merged_with_patient") for one in patients.values() if one["merged_at"]}
        assert len(merged) == 4
        assert set(merged.values()) <= set(patients)
        assert set(merged.values()) & set(merged)
        assert any(one["archived_at"] and not one["merged_at"] for one in patients.values())
        assert any(one["deleted_at"] for one in patients.values())
        assert {related(one, "patient") for one in records["attendees"].values()} & set(merged)


def test_class_places_are_cancelled_and_booked_again(everything):
    records = everything["harbour-pilates"]
    groups = records["group_appointments"]
    in_classes = [one for one in records["attendees"].values() if related(one, "booking") in groups]
    places = defaultdict(list)
    for one in in_classes:
        places[related(one, "booking"), related(one, "patient")].append(counts(one))
    assert len(groups) > 5 * len(records["individual_appointments"])
    again = [sum(rows) for rows in places.values() if len(rows) > 1]
    assert 1 in again
    assert max(again) > 1
    assert not all(map(any, places.values()))
    assert any(one["archived_at"] for one in groups.values())
    assert any(one["deleted_at"] for one in groups.values())
    # An attendee changes without a change of its class.
    assert sum(one["updated_at"] > groups[related(one, "booking")]["updated_at"] for one in in_classes) > 100


def test_contacts_match_in_every_way_and_are_nobodys(everything):
    for organization in demo():
        patients, contacts = everything[organization.id]["patients"], organization.contacts
        found = [patients.get(one["cliniko_patient_id"]) for one in contacts]
        assert any(one and not one["merged_at"] for one in found)
        assert any(one and one["merged_at"] for one in found)
        unknown = [one for one in contacts if not one["cliniko_patient_id"]]
        assert {bool(one["email"]) for one in unknown} == {True, False}
        assert any(not one["name"] for one in contacts)
        assert len({one["id"] for one in contacts}) == len(contacts)
        assert {one["organization_id"] for one in contacts} == {organization.id}
        for one in contacts:
            assert one["email"] is None or one["email"].strip().lower().endswith(("example.org", "example.com"))
            assert one["phone"].startswith(("04915", "025550", "07700900"))


def test_families_share_an_address_and_namesakes_have_none(everything):
    for name in ("surf-rehab", "old-mill-physio"):
        patients = everything[name]["patients"].values()
        addresses = Counter(one["email"] for one in patients if one["email"])
        assert max(addresses.values()) == 3
        namesakes = [one["email"] for one in patients if (one["first_name"], one["last_name"]) == ("Alex", "Taylor")]
        assert len(namesakes) == 2
        assert not any(namesakes)


def test_texts_hold_umlauts_emoji_nul_and_empty_strings(surf):
    patients = surf["patients"].values()
    for field, part in {"first_name": "🏄", "last_name": "ü", "city": "\x00"}.items():
        assert any(part in (one[field] or "") for one in patients), field
    for organization in demo(empty_strings_for_nulls=False):
        for rows in organization.account.records.values():
            assert not any("" in one.values() for one in rows.values())


def test_generated_account_has_the_size_asked_for():
    one = generated_account(50, 400, 1, ANCHOR, 0.25).records
    sizes = {"patients": 50, "individual_appointments": 300, "group_appointments": 100}
    sizes["attendees"] = 300 + 100 * CLASS_SIZE
    assert {resource: len(one[resource]) for resource in sizes} == sizes
    assert one == generated_account(50, 400, 1, ANCHOR, 0.25).records
    assert one != generated_account(50, 400, 2, ANCHOR, 0.25).records
    assert 0 < sum(row["starts_at"] > NOW for row in one["individual_appointments"].values()) < 40
