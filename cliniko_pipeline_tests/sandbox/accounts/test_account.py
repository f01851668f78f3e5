import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.sandbox import wire
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.server import running_sandbox
from cliniko_pipeline_tests.support.sandboxes import KEY, record

HOSTILE = [
    {"id": 12, "email": "", "archived_at": "", "created_at": "2024-01-01T00:00:00Z"},
    {"id": "3", "notes": "nul \x00, lone surrogate \ud800, emoji 🏄, \u2028", "patient": None},
    {"id": "4", "patient": {"links": {}}, "first_name": 7, "created_at": None, "updated_at": "never"},
    {"id": "5", "number": 2**70, "nested": [{"deep": [None, True, 1.5]}]},
    {"id": "6", "text": '{base}/x":"{base}/y', "quoted": 'a:"{base}/patients/1"', "slash": 'ends \\"{base}/'},
    {"no_id": True},
    "not a record",
    None,
]


def test_hostile_records_are_served_unchanged(calling):
    one = Account.from_records("clinic", "au4", KEY, {"attendees": HOSTILE})
    with running_sandbox([one]) as sandbox:
        answer = calling(sandbox, one).get("/attendees")
        bound = f"{sandbox.base_url(one)}/"
    # httpx cannot decode the escape of a lone surrogate, but the standard library can.
    served = json.loads(answer.content)["attendees"]
    expected = [*HOSTILE[:4], {**HOSTILE[4], "text": HOSTILE[4]["text"].replace("{base}/", bound, 1)}, *HOSTILE[5:]]
    assert sorted(served, key=repr) == sorted(expected, key=repr)


def test_hostile_records_do_not_break_filters_and_sorting(calling):
    one = Account.from_records("clinic", "au4", KEY, {"patients": [HOSTILE[0], *HOSTILE[2:]]})
    with running_sandbox([one]) as sandbox:
        caller = calling(sandbox, one)
        for text in ("first_name:~7", "email:!?", "id:>1", "created_at:!?", "updated_at:>2024-01-01T00:00:00Z"):
            assert caller.get("/patients", text, sort="first_name,email:desc").status_code == 200


texts = st.text(st.characters(exclude_categories=[]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_any_value_is_serialised_and_parsed_unchanged(value):
    assert wire.parse(wire.serialise(value)) == value


def test_complete_links_alone_are_bound():
    stored = wire.serialise({"self": "{base}/patients/82", "text": "see {base}/patients/82"})
    bound = json.loads(wire.bind(stored, "http://h/au4/v1"))
    assert bound == {"self": "http://h/au4/v1/patients/82", "text": "see {base}/patients/82"}


def test_account_copies_records_and_hides_its_key():
    one = Account.from_records("clinic", "au4", KEY, {"patients": [record(1)]})
    one.records["patients"]["1"]["id"] = "changed"
    assert one.get("patients", 1) == record(1)
    assert one.get("patients", 2) is None
    assert KEY not in repr(one)


def test_unknown_resource_is_refused():
    with pytest.raises(ArgumentError, match="no resource"):
        Account.from_records("clinic", "au4", KEY, {"unicorns": []})
