import json
import threading
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.queries import QueryError, read_query
from cliniko_pipeline.sandbox.resources import RESOURCES
from cliniko_pipeline.sandbox.server import running_sandbox
from cliniko_pipeline_tests.support.sandboxes import EVERYTHING, KEY, linked, record


def account(**records):
    return Account.from_records("clinic", "au4", KEY, records)


@pytest.fixture
def asking(calling):
    """Yield a caller of a sandbox that serves the given records."""
    with ExitStack() as running:

        def make(**records):
            one = account(**records)
            return calling(running.enter_context(running_sandbox([one])), one)

        yield make


AT = "2024-05-05T05:05:05Z"


def test_list_has_records_total_and_links(asking):
    caller = asking(patients=[record(n) for n in range(1, 151)])
    assert [len(caller.ids("/patients", **sizes)) for sizes in ({}, {"per_page": 1000})] == [50, 100]
    answer = caller.get("/patients", "id:>0", page=2, per_page=2)
    body = answer.json()
    url = str(answer.request.url).split("?")[0]
    assert list(body) == ["patients", "total_entries", "links"]
    assert ([one["id"] for one in body["patients"]], body["total_entries"]) == (["3", "4"], 150)
    numbers = {"self": 2, "next": 3, "previous": 1}
    assert body["links"] == {name: f"{url}?per_page=2&q%5B%5D=id%3A%3E0&page={page}" for name, page in numbers.items()}
    for page, links in {1: {"self", "next"}, 75: {"self", "previous"}, 99: {"self", "previous"}}.items():
        body = caller.get("/patients", per_page=2, page=page).json()
        assert (set(body["links"]), bool(body["patients"])) == (links, page < 99)


def test_lists_can_be_sorted(asking):
    names = ("B", "x"), ("A", "y"), ("A", "x")
    caller = asking(patients=[record(n, last_name=last, first_name=first) for n, (last, first) in enumerate(names, 1)])
    assert caller.ids("/patients", order="desc") == ["3", "2", "1"]
    orders = {"created_at:desc": "321", "last_name,first_name": "321", "last_name,first_name:desc": "231"}
    assert {order: "".join(caller.ids("/patients", sort=order)) for order in orders} == orders


def test_practitioners_who_left_are_in_a_list_of_their_own(asking):
    caller = asking(practitioners=[record(1, active=True), record(2, active=False), record(3), record(4, active=False)])
    assert caller.ids("/practitioners") == ["1", "3"]
    body = caller.get("/practitioners/inactive", per_page=1).json()
    assert ([each["id"] for each in body["practitioners"]], body["total_entries"]) == (["2"], 2)
    assert "/practitioners/inactive?" in body["links"]["next"]
    assert caller.get("/practitioners/2").status_code == 200
    caller.account.has_inactive_list = False
    assert caller.get("/practitioners/inactive").status_code == 404


STATES = [
    record(1),
    record(2, archived_at=AT),
    record(3, cancelled_at=AT),
    record(4, deleted_at=AT),
    record(5, archived_at="", cancelled_at="", deleted_at=""),
    record(6, archived_at=AT, cancelled_at=AT),
]


def test_archived_cancelled_and_deleted_are_hidden(asking):
    caller = asking(attendees=STATES, patients=STATES)
    # Deleted patients are listed together with archived patients.
    assert caller.ids("/patients", "archived_at:*") == ["1", "2", "4", "5"]
    shown = {
        "": "15",
        "archived_at:*": "125",
        "cancelled_at:*": "135",
        "deleted_at:*": "145",
        "archived_at:* cancelled_at:*": "12356",
        " ".join(EVERYTHING): "123456",
        "cancelled_at:?": "3",
        "cancelled_at:!? archived_at:*": "125",
    }
    assert {filters: "".join(caller.ids("/attendees", *filters.split())) for filters in shown} == shown
    assert caller.get("/attendees/2").status_code == 404
    assert caller.get("/attendees/2", "archived_at:*").json()["id"] == "2"


def test_unusable_parameter_is_400_with_the_reason(asking):
    caller = asking()
    for parameters in ({"page": 0}, {"page": "x"}, {"per_page": -1}, {"order": "up"}):
        assert caller.get("/patients", **parameters).status_code == 400, parameters
    assert caller.get("/patients", sort="notes").json() == {"message": "notes is not sortable"}
    for resource, field in {"patients": "deleted_at", "group_appointments": "patient_id"}.items():
        answer = caller.get(f"/{resource}", f"{field}:*")
        assert (answer.status_code, answer.json()) == (400, {"message": f"{field} is not filterable"})


MALFORMED = (
    "created_at created_at:2024-01-01T00:00:00Z created_at:>=2024-01-01 created_at:>=2024-13-01T00:00:00Z created_at:*x"
    " id:= id:=1,,2 id:=one id:~1 email:>a date_of_birth:>1990"
)


@pytest.mark.parametrize("text", MALFORMED.split())
def test_malformed_filter_is_refused(text):
    with pytest.raises(QueryError):
        read_query(RESOURCES["patients"], [("q[]", text)])


BIG = "1234567890123456789"
ROWS = {
    "patients": [
        record(1, email="Ann@example.org", first_name="Ann", date_of_birth="1990-02-03"),
        record(2, email="", first_name="Bo%b", date_of_birth=None),
        record(3, first_name="Annette", email="x@example.com", date_of_birth="2000-01-01"),
    ],
    "individual_appointments": [
        record(1, patient=linked("patients/82"), starts_at="2024-03-01T00:00:00Z", did_not_arrive=True),
        record(2, patient=linked(f"patients/{BIG}"), starts_at="2024-03-02T00:00:00Z", did_not_arrive=False),
        record(3, patient=None, starts_at="2024-03-03T00:00:00Z"),
    ],
    "group_appointments": [record(7, patient_ids=["82", "9"]), record(8, patient_ids=[]), record(9)],
    "attendees": [
        record(1, booking=linked("bookings/5"), patient=linked("patients/82")),
        record(2, booking=linked("bookings/6")),
        record(3, booking={"links": {"self": None}}),
    ],
    "unavailable_blocks": [record(12)],
}
CASES = {
    "patients": {
        "created_at:>2024-01-01T00:00:01Z": "2 3",
        "created_at:>=2024-01-01T00:00:02Z": "2 3",
        "created_at:<2024-01-01T00:00:02Z": "1",
        "created_at:<=2024-01-01T00:00:02Z": "1 2",
        "created_at:*": "1 2 3",
        "date_of_birth:>=1995-01-01": "3",
        "date_of_birth:!?": "2",
        "id:=1,3": "1 3",
        "id:!=1,3": "2",
        "id:>1 id:<=2": "2",
        "email:=Ann@example.org": "1",
        "email:!=Ann@example.org": "3",
        "email:?": "1 3",
        "email:!?": "2",
        "first_name:~NN": "1 3",
        "first_name:~%": "2",
        "first_name:~~ann%": "1 3",
        "first_name:~~%n": "1",
    },
    "individual_appointments": {
        f"patient_id:={BIG}": "2",
        "patient_id:!?": "3",
        "starts_at:>2024-03-02T00:00:00Z": "3",
    },
    "group_appointments": {"patient_ids:~82": "7", "patient_ids:~8": ""},
    "attendees": {"booking_id:=5,6": "1 2", "appointment_id:=6": "2", "patient_id:?": "1"},
    "bookings": {
        "patient_ids:~82": "1 7",
        "did_not_arrive:=true": "1",
        "did_not_arrive:!=true": "2",
        "id:>0": "1 2 3 7 8 9 12",
    },
}


@pytest.mark.parametrize("resource", CASES)
def test_filter_operators_select_their_records(asking, resource):
    caller = asking(**ROWS)
    found = {filters: " ".join(caller.ids(f"/{resource}", *filters.split())) for filters in CASES[resource]}
    assert found == CASES[resource]


def test_put_or_deleted_records_are_seen_in_bookings_too(asking):
    caller = asking(**ROWS)
    assert caller.get("/bookings/7").json()["patient_ids"] == ["82", "9"]
    caller.account.delete("group_appointments", "7")
    assert caller.get("/bookings/7").status_code == 404
    caller.account.put("individual_appointments", record(30))
    caller.account.put("group_appointments", record(8, patient_ids=["5"]))
    assert caller.ids("/bookings", "id:>=8") == ["8", "9", "12", "30"]
    assert caller.ids("/bookings", "patient_ids:~5") == ["8"]


def test_list_is_complete_during_concurrent_changes(asking):
    caller = asking(patients=[record(n) for n in range(100)])
    done = threading.Event()

    def change():
        while not done.is_set():
            for number in range(0, 100, 7):
                caller.account.put("patients", record(number, first_name="changed"))

    writer = threading.Thread(target=change)
    writer.start()
    try:
        for _ in range(30):
            assert caller.ids("/patients", per_page=100) == [str(n) for n in range(100)]
            assert caller.get("/patients", "first_name:?").status_code == 200
    finally:
        done.set()
        writer.join()


seconds = st.integers(0, 5).map("2024-01-01T00:00:0{}Z".format)
flags = st.sampled_from([None, "", AT])
rows = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.integers(1, 10**19 - 1).map(str),
            "created_at": seconds,
            "updated_at": seconds,
            "archived_at": flags,
            "cancelled_at": flags,
        }
    ),
    max_size=25,
    unique_by=lambda one: one["id"],
)


def pages(one, resource, *pairs):
    ids, page = [], 1
    while True:
        found = one.page(resource, read_query(RESOURCES[resource], [*pairs, ("page", str(page))]))
        ids += [json.loads(body)["id"] for body in found.bodies]
        if not found.bodies:
            assert found.total_entries == len(ids)
            return ids
        page += 1


@given(rows, st.integers(1, 9))
def test_pages_are_the_list_in_order(records, per_page):
    one = account(attendees=records)
    wanted = sorted(records, key=lambda row: (row["created_at"], int(row["id"])))
    filters = [("q[]", text) for text in EVERYTHING]
    assert pages(one, "attendees", ("per_page", str(per_page)), *filters) == [row["id"] for row in wanted]


@given(rows, rows, st.lists(st.integers(0, 24)))
def test_changed_account_lists_like_a_new_one(first, second, gone):
    one = account(attendees=first)
    pages(one, "attendees", ("sort", "cancelled_at"))
    for row in second:
        one.put("attendees", row)
    removed = {first[index]["id"] for index in gone if index < len(first)}
    for each in removed:
        one.delete("attendees", each)
    final = {row["id"]: row for row in [*first, *second] if row["id"] not in removed}
    other = account(attendees=final.values())
    for pairs in ([], [("q[]", "cancelled_at:?")], [("sort", "cancelled_at:desc")]):
        assert pages(one, "attendees", *pairs) == pages(other, "attendees", *pairs)
