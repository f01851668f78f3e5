"""Tests of which requests share a budget. postgres/test_request_budgets.py tests the budget itself."""

from cliniko_pipeline.cliniko.exchange.throttle import BudgetRegistry, digest_of
from cliniko_pipeline_tests.support.budgets import SlidingWindowBudget


def test_key_has_one_budget_with_and_without_its_shard():
    registry = BudgetRegistry(lambda _digest: SlidingWindowBudget(1))
    assert registry.budget_for("KEY-au4") is registry.budget_for("KEY") is registry.budget_for("KEY-au4")
    assert registry.budget_for("KEY-au4") is not registry.budget_for("OTHER-au4")


def test_digest_does_not_reveal_the_key():
    digests = []
    BudgetRegistry(lambda digest: digests.append(digest) or SlidingWindowBudget(1)).budget_for("KEY-au4")
    assert digests == [digest_of("KEY-au4")]
    assert digest_of("KEY-AU4") == digest_of("KEY-au4")
    assert "KEY" not in digests[0]
    assert len(digests[0]) == 64
