"""Tests of an account's time zone, which comes from its businesses or its settings, or is unknown."""

from collections.abc import Iterable
from typing import Any

import pytest

from cliniko_pipeline.cliniko.client import ClinikoClient
from cliniko_pipeline.cliniko.exchange.sender import Access, RequestOptions
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline.sandbox.server import Sandbox, running_sandbox
from cliniko_pipeline_tests.support.budgets import SlidingWindowBudget
from cliniko_pipeline_tests.support.sandboxes import record

SYDNEY, PERTH = {"time_zone_identifier": "Australia/Sydney"}, {"time_zone": "Perth", "time_zone_identifier": None}
UNKNOWN = {"time_zone": "Eastern Time (US & Canada)", "time_zone_identifier": "Mars/Olympus_Mons"}
ARCHIVED = PERTH | {"archived_at": "2025-01-01T00:00:00Z"}


def time_zone_of(sandbox: Sandbox, account: Account) -> str | None:
    sandbox.add(account)
    address, budget = sandbox.base_url(account), SlidingWindowBudget(200)
    access = Access(account.api_key, address, "tests (tests@example.org)")
    options = RequestOptions(max_attempts=2, sleep=lambda _: None)
    with ClinikoClient("clinic", access, budget, options=options) as client:
        return client.time_zone()


def clinic(businesses: Iterable[dict[str, Any]], settings: Any = None) -> Account:
    records = [record(number, **each) for number, each in enumerate(businesses, 1)]
    account = Account.from_records("clinic", "au4", "key-au4", {"businesses": records})
    account.settings = settings
    return account


CASES: dict[str, tuple[list[dict[str, Any]], Any, str | None]] = {
    "business": ([SYDNEY], None, "Australia/Sydney"),
    "most of the businesses": ([PERTH, SYDNEY, UNKNOWN, SYDNEY], None, "Australia/Sydney"),
    "as many of each": ([PERTH, SYDNEY], None, "Australia/Perth"),
    "archived businesses do not count": ([ARCHIVED, ARCHIVED, SYDNEY], None, "Australia/Sydney"),
    "settings": ([UNKNOWN], {"account": PERTH}, "Australia/Perth"),
    "no businesses": ([], {"account": SYDNEY}, "Australia/Sydney"),
    "nothing known": ([UNKNOWN], {"account": UNKNOWN}, None),
    "no settings": ([], None, None),
    "settings without one": ([], {"account": {"name": "Clinic"}}, None),
    "no account": ([], {"account": None}, None),
    "of another shape": ([{"time_zone_identifier": 10}], {"account": ["Australia/Sydney"]}, None),
}


@pytest.mark.parametrize(("businesses", "settings", "expected"), CASES.values(), ids=CASES)
def test_time_zone_is_of_the_businesses_or_the_settings(businesses, settings, expected):
    with running_sandbox([]) as sandbox:
        assert time_zone_of(sandbox, clinic(businesses, settings)) == expected


@pytest.mark.parametrize(
    ("forbidden", "expected"), [({"businesses"}, "Australia/Perth"), ({"businesses", "settings"}, None)]
)
def test_time_zone_that_may_not_be_read_is_none(forbidden, expected):
    account = clinic([SYDNEY], {"account": PERTH})
    account.forbidden_resources = forbidden
    with running_sandbox([]) as sandbox:
        assert time_zone_of(sandbox, account) == expected


@pytest.mark.parametrize("fault", ["server_error_rate", "html_ok_rate", "not_an_object_rate", "truncated_body_rate"])
def test_time_zone_that_is_not_answered_is_none(fault):
    with running_sandbox([], faults=Faults(**{fault: 1.0})) as sandbox:
        assert time_zone_of(sandbox, clinic([SYDNEY])) is None
