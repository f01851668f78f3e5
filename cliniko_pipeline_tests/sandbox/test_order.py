"""Tests of the order of a list, its filters and sort fields, and of records that break a page."""

from collections.abc import Callable, Iterator

import pytest

from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.faults import BrokenRecord, Faults, RefusedField
from cliniko_pipeline.sandbox.server import Sandbox, running_sandbox
from cliniko_pipeline_tests.support.sandboxes import KEY, Caller, record

SECOND = "2024-01-01T00:00:05Z"
MANY = [str(number) for number in range(10, 60)]


@pytest.fixture
def served() -> Iterator[Sandbox]:
    imported = [record(int(each), created_at=SECOND, updated_at=SECOND) for each in MANY]
    records = [record(1), record(2), *imported, record(99)]
    accounts = [
        Account.from_records("clinic", "au4", KEY, {"patients": records, "attendees": records}),
        Account.from_records("other", "au4", "b3RoZXI-au4", {"patients": records}),
    ]
    with running_sandbox(accounts) as sandbox:
        yield sandbox


@pytest.fixture
def caller(served: Sandbox, calling: Callable[[Sandbox, Account], Caller]) -> Caller:
    return calling(served, served.accounts["clinic"])


def test_records_of_one_second_change_order_with_each_request(caller):
    answers = [caller.ids("/patients", per_page=100) for _ in range(3)]
    for ids in answers:
        assert (ids[:2], sorted(ids[2:52]), ids[52:]) == (["1", "2"], MANY, ["99"])
    assert len({tuple(ids) for ids in answers}) == 3


def test_pages_within_one_second_repeat_and_lose_records(caller):
    ids = [each for page in range(1, 12) for each in caller.ids("/patients", per_page=5, page=page)]
    assert len(ids) == 53
    assert len(set(ids)) < 53


def test_ties_of_any_sorted_field_change_order(caller):
    answers = [caller.ids("/patients", sort="updated_at:desc", per_page=100) for _ in range(3)]
    assert {tuple(ids[:1] + ids[51:]) for ids in answers} == {("99", "2", "1")}
    assert len({tuple(ids) for ids in answers}) == 3


@pytest.mark.parametrize(
    ("sort", "wanted"),
    [
        ("created_at,id", ["1", "2", *MANY, "99"]),
        ("created_at,id:desc", ["1", "2", *MANY[::-1], "99"]),
        ("created_at:desc,id", ["99", *MANY, "2", "1"]),
        ("id:desc", ["99", *MANY[::-1], "2", "1"]),
    ],
)
def test_order_with_ids_is_the_same_for_each_request(caller, sort, wanted):
    pages = [each for page in range(1, 12) for each in caller.ids("/patients", sort=sort, per_page=5, page=page)]
    assert pages == wanted


def test_ties_can_be_given_one_order(served, caller):
    served.faults = Faults(stable_ties=True)
    assert Faults.from_json(served.faults.as_json()) == served.faults
    assert [caller.ids("/patients", per_page=100) for _ in range(3)] == [["1", "2", *MANY, "99"]] * 3


def test_field_is_refused_by_use_resource_and_account(served, caller, calling):
    other = calling(served, served.accounts["other"])
    refusals = [
        RefusedField("id", "sort", resource="patients"),
        RefusedField("updated_at", "filter", account="clinic"),
    ]
    served.faults = Faults(refused_fields=tuple(refusals))
    assert Faults.from_json(served.faults.as_json()) == served.faults
    for one in (caller, other):
        answer = one.get("/patients", sort="created_at,id")
        assert (answer.status_code, answer.json()) == (400, {"message": "id is not sortable"})
    answer = caller.get("/attendees", f"updated_at:>={SECOND}")
    assert (answer.status_code, answer.json()) == (400, {"message": "updated_at is not filterable"})
    for one, path, filters, sort in (
        (caller, "/attendees", ["id:>1"], "created_at,id"),
        (caller, "/patients", ["id:>1"], "updated_at"),
        (other, "/patients", [f"updated_at:>={SECOND}"], "created_at"),
    ):
        assert one.get(path, *filters, sort=sort).status_code == 200
    served.faults = Faults()
    assert caller.get("/patients", f"updated_at:>={SECOND}", sort="created_at,id").status_code == 200


def test_field_refused_silently_has_no_effect(served, caller):
    fields = RefusedField("id", "sort", silently=True), RefusedField("id", "filter", silently=True)
    served.faults = Faults(refused_fields=fields)
    answers = [caller.ids("/patients", "id:<5", sort="created_at,id", per_page=100) for _ in range(3)]
    assert [len(ids) for ids in answers] == [53] * 3
    assert len({tuple(ids) for ids in answers}) == 3


def test_unknown_use_of_a_refused_field_is_refused():
    with pytest.raises(ArgumentError):
        RefusedField("id", "group")


def test_record_breaks_every_page_that_is_too_large(served, caller):
    broken = BrokenRecord("patients", "30", largest_page=5), BrokenRecord("patients", "40", status=500)
    served.faults = Faults(broken_records=broken)
    assert Faults.from_json(served.faults.as_json()) == served.faults
    sizes = {
        size: [caller.get("/patients", sort="id", per_page=size, page=page).status_code for page in pages]
        for size, pages in {10: (1, 2, 3, 4), 5: (5, 6, 7), 1: (23, 33)}.items()
    }
    assert sizes == {10: [200, 200, 504, 500], 5: [200, 200, 500], 1: [200, 500]}
    assert caller.get("/attendees", per_page=100).status_code == 200
