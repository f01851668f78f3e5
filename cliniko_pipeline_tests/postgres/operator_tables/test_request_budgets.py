"""Tests of the shared request budget in simulated time. Every window has as many requests as the limit allows."""

from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cliniko_pipeline.errors import SettingsError
from cliniko_pipeline.postgres.operator_tables import request_budgets
from cliniko_pipeline.postgres.operator_tables.request_budgets import (
    CROWDED_SECONDS,
    LONGEST_ANSWER_SECONDS,
    SharedRequestBudget,
)
from cliniko_pipeline_tests.support.budget_simulations import (
    WINDOW,
    MovableClock,
    Plan,
    Process,
    Sent,
    Simulation,
    max_in_a_window,
)
from cliniko_pipeline_tests.support.properties import THOROUGH, examples

# Examples are not shrunk, because shrinking takes minutes.
PHASES = [Phase.explicit, Phase.generate, *([Phase.shrink] if THOROUGH else [])]
UNANSWERED_SECONDS = WINDOW + LONGEST_ANSWER_SECONDS
"""Time for which a request counts if nobody reports its response."""

pauses = st.sampled_from([0.0, 0.0, 0.0, 0.3, 2.5, 40.0, 61.0])
latencies = st.sampled_from([0.0, 0.05, 0.2, 1.5, 20.0, 59.9, 61.0, 119.0])
works = st.lists(st.tuples(pauses, latencies), min_size=1, max_size=6).map(tuple)
plans = st.builds(
    Plan,
    threads=st.lists(works, min_size=1, max_size=3).map(tuple),
    killed_at=st.none() | st.sampled_from([0.1, 5.0, 70.0]),
    closed_at=st.none() | st.sampled_from([1.0, 30.0, 90.0]),
)
blockings = st.lists(st.tuples(st.floats(0, 200), st.floats(-1, 100)), max_size=2)


@pytest.fixture
def pair(clock: MovableClock) -> tuple[Process, Process]:
    """Return two processes with the same key, which may send one request per window."""
    return two_processes(clock, 1)


def two_processes(clock: MovableClock, limit: int) -> tuple[Process, Process]:
    one = Process(clock, limit)
    return one, Process(clock, limit, one.key)


def row_of(process: Process) -> Any:
    with process.clock.database.operator() as connection:
        return connection.execute(
            sa.text(
                "select tickets, requests, count_until, pg_column_size(b) as size"
                " from cliniko.request_budgets as b where key_digest = :key"
            ),
            {"key": process.key},
        ).one()


@pytest.fixture
def long_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make waiting processes ask less often, so that the simulation is much faster."""
    if not THOROUGH:
        monkeypatch.setattr(request_budgets, "LONGEST_SLEEP_SECONDS", 20.0)


@given(st.integers(1, 6) | st.integers(401, 1400), st.lists(plans, min_size=1, max_size=3), blockings)
@settings(max_examples=examples(25, 60), phases=PHASES, suppress_health_check=list(HealthCheck))
def test_limit_is_kept_in_every_window(clock, long_sleeps, limit, plans, blocks) -> None:
    """If the limit is large, one statement takes several requests, and another process has left only six of them."""
    simulation = Simulation(clock, limit)
    taken = []
    if limit > 6:
        other = Process(clock, limit, simulation.key)
        other.budget._batch_size = limit - 6
        other.begin()
        taken = [Sent(0.0)] * (limit - 6)
    sent = simulation.run(plans, blocks)
    assert max_in_a_window(sent) <= limit
    assert max_in_a_window([one for one in sent if one.permitted < UNANSWERED_SECONDS - 0.001] + taken) <= limit
    if all(plan.killed_at is None for plan in plans):
        assert len(sent) == sum(len(work) for plan in plans for work in plan.threads)


def test_limit_is_used_up_in_every_window(clock) -> None:
    limit, busy = 20, Plan(threads=(((0.0, 0.05),) * 11,) * 2)
    sent = Simulation(clock, limit).run([busy] * 3, [])
    for number in range(3):
        until = number * (WINDOW + 0.2) + 5
        assert sum(one.permitted < until for one in sent) == (number + 1) * limit


def test_request_over_the_limit_waits_until_a_window_after_an_answer(clock) -> None:
    process = Process(clock, 2)
    first = process.begin()
    clock.now += 0.5
    first.answer()
    clock.now += 20
    process.begin().answer()
    assert process.send() == pytest.approx(40, abs=0.01)
    assert process.send() == pytest.approx(20, abs=0.01)


def test_requests_of_a_killed_process_come_back(clock) -> None:
    """They come back after a window and the longest time that a response takes."""
    killed, other = two_processes(clock, 3)
    for _ in range(2):
        killed.begin()
    # The other process may send the third request at any time.
    assert [other.may_send() for _ in range(2)] == [True, False]
    other.requests[0].answer()
    other.budget.close()
    clock.now = UNANSWERED_SECONDS - 0.01
    assert [other.may_send() for _ in range(2)] == [True, False]
    assert other.send() == pytest.approx(0.01, abs=0.005)
    assert [other.may_send() for _ in range(2)] == [True, False]


def test_unreported_answer_counts_until_the_process_closes(clock, pair) -> None:
    one, other = pair
    one.begin().answer()
    clock.now = WINDOW + 1
    assert not other.may_send()
    one.budget.close()
    assert other.may_send()
    one.budget.close()


def test_block_holds_for_all_processes_and_is_never_shortened(clock) -> None:
    one, other = two_processes(clock, 10)
    other.begin().answer()
    one.budget.block(30)
    other.budget.block(5)
    for invalid in (-100.0, float("nan"), float("inf"), float("-inf")):
        one.budget.block(invalid)
    assert not other.may_send()
    assert (other.budget.left(), Process(clock, 10).send()) == (0, 0.0)
    assert other.send() == pytest.approx(30)
    assert one.send() == 0.0


def test_requests_go_one_at_a_time_for_a_while_after_a_block(clock) -> None:
    blocked, other = two_processes(clock, 1000)
    requests = [blocked.begin() for _ in range(3)]
    for request in requests:
        request.answer()
    blocked.budget.block(0.05)
    clock.now += 0.1
    # The other process sees the block when it takes its next requests.
    for process in (blocked, other):
        for _ in range(3):
            request = process.begin()
            assert not process.may_send()
            request.answer()
    clock.now += CROWDED_SECONDS
    assert [other.may_send() for _ in range(3)] == [True] * 3


def test_left_shrinks_with_every_request_and_comes_back(clock) -> None:
    process = Process(clock, 2)
    left = [process.budget.left()]
    for _ in range(2):
        process.send()
        left.append(process.budget.left())
    clock.now += WINDOW + 0.5
    process.send()
    assert [*left, process.budget.left()] == [2, 1, 0, 1]


@pytest.mark.parametrize(("limit", "window"), [(0, 60.0), (1, 0.0), (1, float("nan"))])
def test_budget_without_requests_is_a_settings_error(clock, limit, window) -> None:
    with pytest.raises(SettingsError):
        SharedRequestBudget(clock.database, "key", limit, window=window)


def test_lower_limit_counts_requests_taken_under_a_higher_one(clock) -> None:
    many = Process(clock, 20)
    few = Process(clock, 2, many.key)
    for _ in range(20):
        many.begin().answer()
    many.budget.close()
    assert few.send() == pytest.approx(WINDOW, abs=0.01)


def test_database_clock_set_back_closes_the_budget_briefly(clock) -> None:
    """The budget is closed for at most the longest time that a response takes."""
    unanswered, answered, blocked = (Process(clock, 1) for _ in range(3))
    unanswered.begin()
    answered.begin().answer()
    blocked.budget.block(100)
    clock.set_back = 24 * 3600.0
    assert unanswered.send() == pytest.approx(UNANSWERED_SECONDS, abs=0.01)
    clock.now = 1.0
    # The process reports the time of the response.
    assert answered.send() == pytest.approx(WINDOW - 1, abs=0.01)
    assert blocked.send() <= 900


def test_rows_from_the_far_future_close_the_budget_briefly(clock) -> None:
    process = Process(clock, 3)
    process.send()
    with clock.database.operator() as connection:
        connection.execute(
            sa.text(
                "update cliniko.request_budgets set tickets = '{7,8,9}', requests = '{1,1,1}',"
                " count_until = array['9999-12-31Z', 'infinity', '2027-01-01Z']::timestamptz[], last_ticket = 9"
                " where key_digest = :key"
            ),
            {"key": process.key},
        )
    assert process.send() == pytest.approx(UNANSWERED_SECONDS, abs=0.01)


def test_database_clock_that_goes_ahead_stops_nobody(clock, pair) -> None:
    process, other = pair
    process.send()
    clock.set_back = -7200.0
    # A process remembers its own requests.
    assert process.send() == pytest.approx(WINDOW, abs=0.01)
    assert other.send() <= UNANSWERED_SECONDS


def test_large_limit_is_taken_in_batches_and_the_unsent_rest_given_up(clock) -> None:
    one, other = two_processes(clock, 4000)
    for _ in range(10):
        one.begin().answer()
    row = row_of(one)
    assert (row.tickets, row.requests) == ([1], [10])
    for _ in range(3):
        one.begin().answer()
    assert row_of(one).requests == [10, 10]
    clock.now += 1.1
    one.begin().answer()
    assert row_of(one).requests == [10, 10, 10]
    assert one.budget.left() == 3970
    one.budget.close()
    # The last request that was given up unsent counts from the time when it was taken.
    clock.now += WINDOW - 0.05
    other.begin()
    assert row_of(one).requests == [10, 10]
    clock.now += 0.1
    other.begin()
    clock.now += 1.1
    other.begin()
    assert row_of(one).requests == [10, 10]


def test_row_of_an_idle_budget_stays_small(clock) -> None:
    process = Process(clock, 200)
    for _ in range(200):
        process.begin().answer()
    assert not process.may_send()
    assert len(row_of(process).tickets) == 200
    clock.now += UNANSWERED_SECONDS + 1
    process.begin().answer()
    process.budget.close()
    row = row_of(process)
    assert (len(row.tickets), len(row.requests), len(row.count_until)) == (1, 1, 1)
    assert row.size < 300
