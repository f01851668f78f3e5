"""Tests that drawn accounts contain all oddities."""

import json
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import Phase, find, given, settings

from cliniko_pipeline_tests.support.hostile_accounts import Account, accounts
from cliniko_pipeline_tests.support.independent import expected_active_patients, expected_contact_mapping, merge_loops

pytestmark = pytest.mark.slow


def statuses(account: Account) -> set[tuple[str, str | None]]:
    mapping = expected_contact_mapping(account.records, account.contacts, account.organization_id)
    return {(entry.status, entry.method) for entry in mapping.values()}


def active_rows(account: Account, **changes: Any) -> list[dict[str, Any]]:
    arguments = (account.records, account.contacts, account.organization_id, account.as_of)
    return list(expected_active_patients(*arguments, **changes).values())


def starts(account: Account) -> set[datetime]:
    appointments = [*account.records["individual_appointments"], *account.records["group_appointments"]]
    return {datetime.fromisoformat(record["starts_at"]) for record in appointments}


def bookings_per_person(account: Account) -> Counter[str]:
    return Counter(json.dumps([record["booking"], record["patient"]]) for record in account.records["attendees"])


ODDITIES: dict[str, Callable[[Account], Any]] = {
    "nobody active": lambda a: a.records["patients"] and a.records["individual_appointments"] and not active_rows(a),
    "an appointment to come": lambda a: any(row["upcoming_appointment_count"] for row in active_rows(a)),
    "an active person in a group": lambda a: any(
        appointment["kind"] == "group" for row in active_rows(a) for appointment in row["recent_appointments"]
    ),
    "a person active only by a no-show": lambda a: len(active_rows(a)) > len(active_rows(a, count_no_shows=False)),
    "matched by id": lambda a: ("matched", "cliniko_patient_id") in statuses(a),
    "matched by e-mail": lambda a: ("matched", "email") in statuses(a),
    "matched by name": lambda a: ("matched", "name") in statuses(a),
    "ambiguous": lambda a: ("ambiguous", None) in statuses(a),
    "a loop of merges": lambda a: merge_loops(a.records),
    "an appointment at as_of": lambda a: a.as_of in starts(a),
    "an appointment at the window's start": lambda a: a.as_of - timedelta(days=60) in starts(a),
    "a person added to a booking twice": lambda a: any(count > 1 for count in bookings_per_person(a).values()),
}


def test_drawn_accounts_contain_every_oddity():
    """Draw the same 200 accounts in every run. Draw more if another version of hypothesis draws other accounts."""
    drawn: list[Account] = []
    same = settings(max_examples=200, deadline=None, database=None, derandomize=True, phases=[Phase.generate])

    @same
    @given(accounts())
    def draw(account: Account) -> None:
        drawn.append(account)

    draw()
    for is_odd in ODDITIES.values():
        if not any(is_odd(account) for account in drawn):
            find(accounts(), lambda account, is_odd=is_odd: bool(is_odd(account)), settings=settings(max_examples=2000))
