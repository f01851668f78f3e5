"""Whose budget is whose; and the budget that other tests use in place of the shared one, which is held against the same
rules in postgres/test_request_budgets.py.
"""

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliniko_pipeline.cliniko.throttle import BudgetRegistry, digest_of
from cliniko_pipeline_tests.support.budgets import SlidingWindowBudget
from cliniko_pipeline_tests.support.properties import examples


class FakeTime:
    """A clock that only sleeping and the test move."""

    def __init__(self, now=1_000.0):
        self.now = now
        self.slept = []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def budget_of(limit, time, window=60.0):
    return SlidingWindowBudget(limit, window, clock=time.clock, sleep=time.sleep)


def test_requests_within_the_limit_do_not_wait():
    time = FakeTime()
    budget = budget_of(3, time)
    assert [budget.take() for _ in range(3)] == [0.0, 0.0, 0.0]


def test_the_request_over_the_limit_waits_until_the_oldest_leaves_the_window():
    time = FakeTime()
    budget = budget_of(2, time)
    budget.take()
    time.now += 20
    budget.take()
    assert budget.take() == pytest.approx(40, abs=0.01)


@given(
    limit=st.integers(1, 7),
    pauses=st.lists(st.floats(0, 40, allow_nan=False), min_size=1, max_size=80),
    blocks=st.dictionaries(st.integers(0, 80), st.floats(0, 100, allow_nan=False), max_size=5),
)
@settings(max_examples=examples(150))
def test_no_window_of_a_minute_ever_holds_more_than_the_limit(limit, pauses, blocks):
    time = FakeTime()
    budget = budget_of(limit, time)
    granted = []
    for number, pause in enumerate(pauses):
        time.now += pause
        if number in blocks:
            budget.block(blocks[number])
        blocked_until = time.now + blocks.get(number, 0)
        budget.take()
        assert time.now >= blocked_until
        granted.append(time.now)
    for first, beyond in zip(granted, granted[limit:], strict=False):
        assert beyond - first > 60.0 - 1e-9


@given(st.lists(st.integers(0, 3), min_size=30, max_size=60))
@settings(max_examples=examples(50))
def test_nobody_waits_longer_than_the_window_demands(pauses):
    time = FakeTime()
    budget = budget_of(5, time)
    granted = []
    for pause in pauses:
        time.now += pause
        arrived = time.now
        budget.take()
        earliest = max(arrived, granted[-5] + 60.0) if len(granted) >= 5 else arrived
        assert time.now <= earliest + 0.01
        granted.append(time.now)


def test_a_block_holds_for_everyone_and_is_never_shortened():
    time = FakeTime()
    budget = budget_of(10, time)
    budget.block(30)
    budget.block(5)
    assert budget.left() == 0
    assert budget.take() == pytest.approx(30)


def test_a_block_that_comes_while_someone_waits_is_kept():
    time = FakeTime()

    def sleep(seconds):
        time.sleep(seconds)
        if len(time.slept) == 1:
            budget.block(100)

    budget = SlidingWindowBudget(1, 60.0, clock=time.clock, sleep=sleep)
    budget.take()
    assert budget.take() == pytest.approx(160, abs=0.01)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -5.0])
def test_junk_blocks_nobody(seconds):
    time = FakeTime()
    budget = budget_of(1, time)
    budget.block(seconds)
    assert budget.take() == 0.0


def test_what_is_left_shrinks_with_every_request_and_comes_back():
    time = FakeTime()
    budget = budget_of(2, time)
    assert budget.left() == 2
    budget.take()
    assert budget.left() == 1
    time.now += 60.5
    assert budget.left() == 2


def test_an_interrupted_wait_costs_nothing():
    time = FakeTime()

    def interrupt(seconds):
        raise KeyboardInterrupt

    budget = SlidingWindowBudget(1, 60.0, clock=time.clock, sleep=interrupt)
    budget.take()
    with pytest.raises(KeyboardInterrupt):
        budget.take()
    time.now += 60.5
    assert budget.take() == 0.0


def test_threads_together_keep_the_limit():
    lock, now, granted = threading.Lock(), [0.0], []

    def clock():
        with lock:
            return now[0]

    def sleep(seconds):
        with lock:
            now[0] += min(seconds, random.uniform(0.1, 5.0))

    budget = SlidingWindowBudget(4, 60.0, clock=clock, sleep=sleep)

    def work():
        for _ in range(10):
            budget.take()
            granted.append(clock())

    threads = [threading.Thread(target=work, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(granted) == 60
    # 60 requests at 4 a minute: the last group of four starts no sooner than 14 windows after the first.
    assert now[0] >= 14 * 60.0


def test_one_key_has_one_budget_with_and_without_its_shard():
    registry = BudgetRegistry(lambda _digest: SlidingWindowBudget(1))
    assert registry.budget_for("KEY-au4") is registry.budget_for("KEY") is registry.budget_for("KEY-au4")
    assert registry.budget_for("KEY-au4") is not registry.budget_for("OTHER-au4")


def test_a_digest_does_not_give_the_key_away():
    seen = []
    BudgetRegistry(lambda digest: seen.append(digest) or SlidingWindowBudget(1)).budget_for("KEY-au4")
    assert seen == [digest_of("KEY-au4")]
    assert "KEY" not in seen[0]
    assert len(seen[0]) == 64
