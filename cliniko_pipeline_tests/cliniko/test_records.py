"""Records and pages decoded from Cliniko's JSON, and rejected records."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliniko_pipeline.cliniko import records
from cliniko_pipeline.cliniko.decoding.pages import decode_page
from cliniko_pipeline.cliniko.records import (
    APPOINTMENT_TYPES,
    ATTENDEES,
    GROUP_APPOINTMENTS,
    INDIVIDUAL_APPOINTMENTS,
    PATIENTS,
    PRACTITIONERS,
    Patient,
)
from cliniko_pipeline.errors import ClinikoUnavailableError, UnexpectedResponseError
from cliniko_pipeline_tests.support.properties import examples

CREATED = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
UPDATED = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
BASE = {"id": "1", "created_at": "2024-01-02T03:04:05Z", "updated_at": "2024-05-06T07:08:09Z"}
RESOURCES = [value for value in vars(records).values() if isinstance(value, records.Resource)]
APPOINTMENT = {**BASE, "starts_at": "2024-02-03T04:05:06Z"}


def link(name, number):
    return {"links": {"self": f"https://api.au4.cliniko.com/v1/{name}/{number}"}}


def page(resource, *entries, total=None, **more):
    return json.dumps({resource.name: entries, "total_entries": total or len(entries), "links": {}, **more}).encode()


def decoded(resource, *entries):
    return decode_page(resource, page(resource, *entries))


def start_of(resource):
    return APPOINTMENT if "appointments" in resource.name else BASE


def decode_record(resource, **values):
    """Decode a page of one valid record."""
    result = decoded(resource, {**start_of(resource), **values})
    assert result.rejected == []
    return result.records[0]


def rejected(resource, entry):
    """Decode a page with one bad record between two good records. Return the rejection of the bad record."""
    start = start_of(resource)
    result = decoded(resource, {**start, "id": "7"}, entry, {**start, "id": "9"})
    assert [record.id for record in result.records] == ["7", "9"]
    (rejection,) = result.rejected
    return rejection


def test_patient_has_the_documented_fields_only():
    names = {"first_name": "Ada", "last_name": "Example", "email": "ada@example.com"}
    patient = decode_record(
        PATIENTS,
        **names,
        archived_at="2024-03-01T00:00:00Z",
        merged_at="2024-04-01T00:00:00Z",
        merged_with_patient=link("patients", 82),
        notes="clinical",
    )
    archived, merged = datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 4, 1, tzinfo=UTC)
    assert patient == Patient(
        "1", CREATED, UPDATED, **names, archived_at=archived, merged_at=merged, merged_into_id="82"
    )
    assert "clinical" not in str(patient.__struct_fields__)
    assert repr(patient) == str(patient) == "<Patient 1>"
    with pytest.raises(AttributeError):
        patient.first_name = "other"


def test_individual_appointment_has_the_ids_of_its_relations():
    appointment = decode_record(
        INDIVIDUAL_APPOINTMENTS,
        ends_at="2024-02-03T05:05:06Z",
        cancelled_at="2024-02-01T00:00:00Z",
        did_not_arrive=True,
        patient=link("patients", 82),
        appointment_type=link("appointment_types", 3),
        practitioner=link("practitioners", 4),
    )
    assert (appointment.patient_id, appointment.appointment_type_id, appointment.practitioner_id) == ("82", "3", "4")
    assert appointment.ends_at - appointment.starts_at == timedelta(hours=1)
    assert appointment.cancelled_at == datetime(2024, 2, 1, tzinfo=UTC)
    assert appointment.did_not_arrive is True


def test_attendee_has_the_id_of_its_group_appointment():
    group = decode_record(GROUP_APPOINTMENTS, id="1234567890123456789", appointment_type=link("appointment_types", 3))
    attendee = decode_record(
        ATTENDEES, booking=link("bookings", "1234567890123456789"), patient=link("patients", 82), arrived=False
    )
    assert (group.id, group.appointment_type_id) == (attendee.booking_id, "3")
    assert (attendee.patient_id, attendee.arrived) == ("82", False)
    assert decode_record(APPOINTMENT_TYPES, id=3, name="Initial").name == "Initial"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"display_name": "Dr Ada", "label": "AE", "first_name": "Ada", "last_name": "Example"}, "Dr Ada"),
        ({"display_name": " ", "label": "AE", "first_name": "Ada"}, "AE"),
        ({"display_name": None, "label": "\u0000", "first_name": "Ada", "last_name": "Example"}, "Ada Example"),
        ({"last_name": "Example"}, "Example"),
        ({"first_name": " "}, None),
    ],
)
def test_practitioner_has_the_first_name_that_is_not_blank(names, expected):
    assert decode_record(PRACTITIONERS, **names).name == expected


def test_empty_string_means_null():
    patient = decode_record(PATIENTS, archived_at="", deleted_at="", email="", merged_with_patient="", first_name="")
    assert (patient.archived_at, patient.deleted_at, patient.email, patient.merged_into_id) == (None, None, None, None)
    assert patient.first_name == ""
    appointment = decode_record(INDIVIDUAL_APPOINTMENTS, ends_at="", did_not_arrive="", cancelled_at="")
    assert (appointment.ends_at, appointment.cancelled_at, appointment.did_not_arrive) == (None, None, False)
    assert decode_record(ATTENDEES, arrived="").arrived is None


@pytest.mark.parametrize("value", [None, {}, {"links": None}, {"links": {"self": ""}}])
def test_empty_link_means_null(value):
    assert decode_record(INDIVIDUAL_APPOINTMENTS, patient=value).patient_id is None


@pytest.mark.parametrize("ending", ["82", "82#top", "82/?a=/9"])
def test_id_of_a_link_is_the_last_segment_of_its_path(ending):
    assert decode_record(INDIVIDUAL_APPOINTMENTS, patient=link("patients", ending)).patient_id == "82"


@given(st.integers(0, 10**19 - 1))
@settings(max_examples=examples(20))
def test_ids_keep_all_digits_as_text_or_number(number):
    assert decode_record(PATIENTS, id=str(number)).id == decode_record(PATIENTS, id=number).id == str(number)


@given(
    st.integers(-2_208_988_800, 7_258_118_400).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    st.integers(-14 * 60, 14 * 60),
    st.sampled_from(["T", " "]),
    st.sampled_from(["auto", "seconds", "milliseconds", "microseconds"]),
)
@settings(max_examples=examples(30))
def test_instant_with_any_offset_is_read_in_utc(utc, minutes, separator, precision):
    moment = utc.astimezone(timezone(timedelta(minutes=minutes)))
    patient = decode_record(PATIENTS, archived_at=moment.isoformat(separator, precision))
    assert patient.archived_at == moment
    assert patient.archived_at.tzinfo is UTC
    assert decode_record(PATIENTS, archived_at="2024-01-02T03:04:05.123456789Z").archived_at.second == 5


MALFORMED = {
    (PATIENTS, "id"): [None, "", "1.0", 1.0, True, -1, "\u0664", "1" * 21, 10**400, "1\u0000"],
    (PATIENTS, "created_at"): [None, "", "2024-01-02", "2024-01-02T03:04:05", "2024-13-02T03:04:05Z", True, {}],
    (PATIENTS, "updated_at"): [None, "", "9999-12-31T23:59:59-10:00", 1704164645],
    (PATIENTS, "archived_at"): ["2024-01-02x03:04:05Z", "20240102T030405Z", "2024-02-30T03:04:05Z"],
    (INDIVIDUAL_APPOINTMENTS, "patient"): [
        link("patients", "x"), "none", 5, {"links": {"self": 5}}, {"links": {"self": "https://[bad/x"}},
    ],
    (ATTENDEES, "arrived"): ["yes", 1, []],
}  # fmt: skip


@pytest.mark.parametrize(
    ("resource", "name", "value"), [(*field, value) for field, values in MALFORMED.items() for value in values]
)
def test_record_with_a_malformed_field_is_rejected(resource, name, value):
    rejection = rejected(resource, {**APPOINTMENT, name: value})
    assert rejection.id == (None if name == "id" else "1")
    assert rejection.reason.startswith(f"{name}: ")


@pytest.mark.parametrize("resource", RESOURCES)
def test_record_without_a_required_field_is_rejected(resource):
    for missing in start_of(resource):
        entry = {name: value for name, value in APPOINTMENT.items() if name != missing}
        assert rejected(resource, entry).reason.startswith(f"{missing}: ")


@pytest.mark.parametrize("entry", [None, []])
def test_entry_that_is_no_object_is_rejected_alone(entry):
    rejection = rejected(PATIENTS, entry)
    assert (rejection.resource, rejection.id) == ("patients", None)
    assert rejection.reason.startswith("record: ")


SECRETIVE = ["SECRET", ["SECRET"], {"SECRET": "SECRET"}, {"links": {"self": {"SECRET": 1}}}]
FIELDS = ["id", "created_at", "archived_at", "first_name", "email", "merged_with_patient"]


@given(st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(SECRETIVE), min_size=1))
@settings(max_examples=examples(25))
def test_reason_of_a_rejection_does_not_hold_the_value(values):
    result = decoded(PATIENTS, {**BASE, **values})
    assert len(result.records) + len(result.rejected) == 1
    for rejection in result.rejected:
        assert "SECRET" not in str(rejection)
        assert "\n" not in rejection.reason


ANY_TEXT = st.text(st.characters(codec=None) | st.sampled_from('\x00\\"\ud800\udbff\udc00\udfff\n😀u'), max_size=12)


def storable(text):
    """Return the JSON's text without NUL and with lone surrogates replaced. This does not use the pipeline's code."""
    joined = json.loads(json.dumps(text))
    return re.sub("[\ud800-\udfff]", "\ufffd", joined).replace("\x00", "")


@given(ANY_TEXT, ANY_TEXT, st.booleans())
@settings(max_examples=examples(60))
def test_any_text_is_kept_or_repaired(name, notes, is_escaped):
    entries = [{**BASE, "id": "7"}, {**BASE, "first_name": name, "notes": notes, f"x{notes}": 1}]
    body = json.dumps({"patients": entries, "total_entries": 2}, ensure_ascii=not is_escaped)
    result = decode_page(PATIENTS, body.encode("utf-8", "surrogatepass"))
    assert result.rejected == []
    text = result.records[1].first_name
    assert is_escaped or text == storable(name)
    assert "\x00" not in text.encode().decode()


def test_invalid_text_is_replaced_beside_a_rejected_record():
    body = page(PATIENTS, {**BASE, "archived_at": 5}, {**BASE, "id": "2", "first_name": "A?\ud800"})
    result = decode_page(PATIENTS, body.replace(b"A?", b"A\xff"))
    assert [record.first_name for record in result.records] == ["A\ufffd\ufffd"]
    assert [rejection.id for rejection in result.rejected] == ["1"]


@pytest.mark.parametrize("links", [None, {}, {"next": ""}])
def test_page_has_its_total_and_next_link_unless_it_is_the_last(links):
    body = page(PATIENTS, BASE, total=250, links={"next": "https://h/v1/patients?page=2"})
    result = decode_page(PATIENTS, body)
    assert (result.total_entries, result.next_url) == (250, "https://h/v1/patients?page=2")
    assert decode_page(PATIENTS, page(PATIENTS, BASE, links=links)).next_url is None


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b'{"patients": []} x',
        b"\xff\xfe",
        b'{"patients": [5], "total_entries": 1, "x": ' + b"[" * 200_000,
        b'{"patients": [], "total_entries": 1, "x": ' + b"[" * 200_000,
    ],
    ids=["no JSON", "more after it", "no UTF-8", "deeply nested, a bad record", "deeply nested"],
)
def test_malformed_json_is_transient(body):
    with pytest.raises(ClinikoUnavailableError):
        decode_page(PATIENTS, body)


def test_truncated_page_is_transient():
    body = page(PATIENTS, {**BASE, "first_name": "Ä\ud800"})
    for length in range(len(body)):
        with pytest.raises(ClinikoUnavailableError):
            decode_page(PATIENTS, body[:length])


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"message": "SECRET"},
        {"patients": []},
        {"patients": [], "total_entries": "SECRET"},
        {"patients": [], "total_entries": -1},
        {"patients": [], "total_entries": 0, "links": {"next": ["SECRET"]}},
    ],
)
def test_json_of_another_shape_is_unexpected(document):
    with pytest.raises(UnexpectedResponseError, match="patients") as caught:
        decode_page(PATIENTS, json.dumps(document).encode())
    assert "SECRET" not in str(caught.value)


def test_each_resource_requests_all_hidden_records():
    asked = {resource.name: set(resource.include_everything) for resource in RESOURCES}
    assert asked == {
        "patients": {"archived_at:*"},
        "individual_appointments": {"archived_at:*", "cancelled_at:*", "deleted_at:*"},
        "group_appointments": {"archived_at:*", "deleted_at:*"},
        "attendees": {"archived_at:*", "cancelled_at:*", "deleted_at:*"},
        "appointment_types": {"archived_at:*"},
        "practitioners": set(),
    }
