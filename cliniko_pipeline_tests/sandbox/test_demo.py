from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from cliniko_pipeline.sandbox.demo import demo_organizations
from cliniko_pipeline.sandbox.generated import CLASS_SIZE, generated_account
from cliniko_pipeline.sandbox.records import instant
from cliniko_pipeline_tests.support.sandboxes import ANCHOR, demo

NOW = instant(ANCHOR)
RECENT = instant(ANCHOR - timedelta(days=60))


@pytest.fixture(scope="module")
def organizations():
    return {one.id: one for one in demo()}


@pytest.fixture(scope="module")
def everything(organizations):
    return {name: one.account.records for name, one in organizations.items()}


@pytest.fixture
def surf(everything):
    return everything["surf-rehab"]


def related(record, relation):
    return record[relation]["links"]["self"].rsplit("/", 1)[1]


def counts(record):
    return not (record.get("cancelled_at") or record["archived_at"] or record["deleted_at"])


def test_demo_of_the_same_anchor_is_the_same(organizations, everything):
    again = {one.id: one for one in demo_organizations(ANCHOR)}
    assert {name: one.account.records for name, one in again.items()} == everything
    assert {name: one.contacts for name, one in again.items()} == {
        name: one.contacts for name, one in organizations.items()
    }


def test_demo_organizations_have_names_and_shards(organizations):
    placed = [(one.id, one.name, one.account.name, one.account.shard) for one in organizations.values()]
    assert placed == [
        ("surf-rehab", "Surf Rehab", "surf-rehab", "au4"),
        ("harbour-pilates", "Harbour Pilates", "harbour-pilates", "uk2"),
        ("old-mill-physio", "Old Mill Physio", "old-mill-physio", "au1"),
    ]
    assert [one.account.api_key.endswith(f"-{one.account.shard}") for one in organizations.values()] == [
        True,
        True,
        False,
    ]


def test_surf_rehab_has_631_patients_two_fifths_active(surf):
    assert len(surf["patients"]) == 631
    assert 5000 < len(surf["individual_appointments"]) < 7000
    active = {
        related(one, "patient")
        for one in surf["individual_appointments"].values()
        if counts(one) and RECENT <= one["starts_at"] <= NOW
    }
    active = {one for one in active if counts(surf["patients"][one])}
    assert 0.37 < len(active) / 631 < 0.43


def require_changes_before(anchor, everything):
    for records in everything:
        for resource, rows in records.items():
            for one in rows.values():
                assert one["created_at"] <= one["updated_at"] <= instant(anchor), (resource, one["id"])


def test_records_change_between_creation_and_anchor(everything):
    require_changes_before(ANCHOR, everything.values())


@pytest.mark.slow
@pytest.mark.parametrize("anchor", [datetime(2025, 2, 28, 0, 30, tzinfo=UTC), datetime(2028, 2, 29, 23, tzinfo=UTC)])
def test_records_change_before_any_anchor(anchor):
    require_changes_before(anchor, [one.account.records for one in demo_organizations(anchor)])


def test_individual_appointment_has_one_matching_attendee(everything):
    for records in everything.values():
        attendees = {}
        for one in records["attendees"].values():
            attendees.setdefault(related(one, "booking"), []).append(one)
        for appointment in records["individual_appointments"].values():
            (only,) = attendees[appointment["id"]]
            assert related(only, "patient") == related(appointment, "patient")
            assert bool(only["cancelled_at"]) == bool(appointment["cancelled_at"])


def test_links_of_bookings_lead_to_records(everything):
    for records in everything.values():
        bookings = {**records["individual_appointments"], **records["group_appointments"]}
        for one in bookings.values():
            assert related(one, "practitioner") in records["practitioners"]
            assert related(one, "business") in records["businesses"]
            assert related(one, "appointment_type") in records["appointment_types"]
        for one in records["attendees"].values():
            assert related(one, "booking") in bookings
            assert related(one, "patient") in records["patients"]


def test_ids_exceed_floats_and_sort_by_number_only(everything):
    ids = list(everything["surf-rehab"]["patients"])
    assert {len(one) for one in ids} == {18, 19}
    assert sorted(ids) != sorted(ids, key=int)
    assert min(map(int, ids)) > 2**53
    assert all(len(one) <= 3 for one in everything["old-mill-physio"]["patients"])


def test_appointments_have_every_state(surf):
    appointments = surf["individual_appointments"].values()
    assert all(
        any(found)
        for found in (
            (one["starts_at"] > NOW for one in appointments),
            (one["cancelled_at"] for one in appointments),
            (one["archived_at"] for one in appointments),
            (one["deleted_at"] for one in appointments),
            (one["did_not_arrive"] for one in appointments),
            (one["starts_at"] > NOW and one["cancelled_at"] for one in appointments),
            (one["cancelled_at"] == "" for one in appointments),
        )
    )


def test_patients_are_archived_deleted_and_merged(everything):
    for records in everything.values():
        patients = records["patients"]
        merged = {one["id"]: related(one, "merged_with_patient") for one in patients.values() if one["merged_at"]}
        assert len(merged) == 4
        assert any(kept in merged for kept in merged.values())
        assert all(kept in patients for kept in merged.values())
        assert any(one["archived_at"] and not one["merged_at"] for one in patients.values())
        assert any(one["deleted_at"] for one in patients.values())
        assert {related(one, "patient") for one in records["attendees"].values()} & set(merged)


def test_class_places_are_cancelled_and_booked_again(everything):
    records = everything["harbour-pilates"]
    groups = records["group_appointments"]
    places = {}
    for one in records["attendees"].values():
        if related(one, "booking") in groups:
            places.setdefault((related(one, "booking"), related(one, "patient")), []).append(one)
    assert len(groups) > 5 * len(records["individual_appointments"])
    again = [rows for rows in places.values() if len(rows) > 1]
    assert any(sum(map(counts, rows)) == 1 for rows in again)
    assert any(sum(map(counts, rows)) > 1 for rows in again)
    assert any(not any(map(counts, rows)) for rows in places.values())
    assert any(one["archived_at"] for one in groups.values())
    assert any(one["deleted_at"] for one in groups.values())


def test_class_names_the_patients_with_a_place(everything):
    for records in everything.values():
        places = {}
        for one in records["attendees"].values():
            if counts(one):
                places.setdefault(related(one, "booking"), set()).add(related(one, "patient"))
        for one in records["group_appointments"].values():
            assert set(one["patient_ids"]) == places.get(one["id"], set())
            assert len(one["patient_ids"]) <= one["max_attendees"]


def test_attendee_changes_without_its_class(everything):
    records = everything["harbour-pilates"]
    groups = records["group_appointments"]
    later = [
        one
        for one in records["attendees"].values()
        if related(one, "booking") in groups and one["updated_at"] > groups[related(one, "booking")]["updated_at"]
    ]
    assert len(later) > 100


def test_one_second_has_more_than_a_page_of_records(surf):
    for resource in ("patients", "individual_appointments"):
        seconds = Counter(one["updated_at"] for one in surf[resource].values())
        assert seconds.most_common(1)[0][1] > 100


def test_contacts_match_in_every_way(organizations, everything):
    for name, organization in organizations.items():
        patients, contacts = everything[name]["patients"], organization.contacts
        known = [one["cliniko_patient_id"] for one in contacts if one["cliniko_patient_id"]]
        assert any(one in patients for one in known)
        assert any(one in patients and patients[one]["merged_at"] for one in known)
        assert any(one["email"] and not one["cliniko_patient_id"] for one in contacts)
        assert any(not one["email"] and not one["cliniko_patient_id"] for one in contacts)
        assert any(not one["name"] for one in contacts)
        assert len({one["id"] for one in contacts}) == len(contacts)
        assert {one["organization_id"] for one in contacts} == {name}


def test_families_share_an_address_and_namesakes_have_none(everything):
    for name in ("surf-rehab", "old-mill-physio"):
        patients = everything[name]["patients"].values()
        addresses = Counter(one["email"] for one in patients if one["email"])
        assert max(addresses.values()) == 3
        namesakes = [one for one in patients if (one["first_name"], one["last_name"]) == ("Alex", "Taylor")]
        assert len(namesakes) == 2
        assert not any(one["email"] for one in namesakes)


def test_addresses_and_numbers_are_nobodys(organizations, everything):
    for organization in organizations.values():
        for one in organization.contacts:
            assert one["email"] is None or one["email"].strip().lower().endswith(("example.org", "example.com"))
            assert one["phone"].startswith(("04915", "025550", "07700900"))


def test_texts_hold_umlauts_emoji_and_nul(surf):
    patients = surf["patients"].values()
    assert any("🏄" in one["first_name"] for one in patients)
    assert any("ü" in one["last_name"] for one in patients)
    assert any("\x00" in (one["city"] or "") for one in patients)


def test_demo_without_empty_strings_has_none():
    for organization in demo(empty_strings_for_nulls=False):
        for rows in organization.account.records.values():
            assert not any("" in one.values() for one in rows.values())


def test_generated_account_has_the_size_asked_for():
    one = generated_account(50, 400, 1, ANCHOR, 0.25).records
    assert len(one["patients"]) == 50
    assert len(one["individual_appointments"]) == 300
    assert len(one["group_appointments"]) == 100
    assert len(one["attendees"]) == 300 + 100 * CLASS_SIZE
    assert one == generated_account(50, 400, 1, ANCHOR, 0.25).records
    assert one != generated_account(50, 400, 2, ANCHOR, 0.25).records
    upcoming = [row for row in one["individual_appointments"].values() if row["starts_at"] > NOW]
    assert 0 < len(upcoming) < 40
