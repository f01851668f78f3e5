"""What is told to the operator, and how often."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliniko_pipeline.orchestration.alert_plans import AlertPlan, Problem, plan_alerts, problems
from cliniko_pipeline.postgres.alerts import Alert
from cliniko_pipeline.postgres.check_results import CheckResult
from cliniko_pipeline.postgres.scheduling import Scheduling

NOW = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
DAY = timedelta(days=1)
FRESH = "is_fresh"
WELL = Scheduling("org")
PAUSED = replace(WELL, paused_at=NOW, pause_reason="bad key", failure_reason="bad key", failure_is_permanent=True)
DOWN = replace(WELL, failures=3, failure_reason="down", failed_run_id="run")
REJECTED = CheckResult("org", "cliniko/patients", "nothing_was_rejected", holds=False, remark="3", run_id="run")
STALE = CheckResult("org", "active_patients", FRESH, holds=False, remark="old", run_id=None)


def found(*schedulings: Scheduling, checks: tuple[CheckResult, ...] = ()) -> list[Problem]:
    return problems(schedulings, checks, after_failures=3, freshness_check=FRESH)


class Operator:
    """Is told what the plans say; `told` are the kinds, in order."""

    def __init__(self) -> None:
        self.alerts: dict[tuple[str, str], Alert] = {}
        self.told: list[str] = []

    def plan(
        self, scheduling: Scheduling = WELL, *checks: CheckResult, at: datetime = NOW, is_watched: bool = True
    ) -> AlertPlan:
        plan = plan_alerts(
            found(scheduling, checks=checks),
            list(self.alerts.values()),
            watched={"org"} if is_watched else set(),
            now=at,
            repeat_after=DAY,
            recovering={"org"} if scheduling.failure_reason is not None else set(),
        )
        for alert in (*plan.recovered, *plan.forgotten):
            del self.alerts[alert.organization_id, alert.name]
        self.alerts |= {(alert.organization_id, alert.name): alert for alert in plan.kept}
        self.told += [each.kind for each in plan.raised]
        self.told += [f"still {each.kind}" for each in plan.repeated]
        self.told += [f"no longer {each.kind}" for each in plan.recovered]
        return plan


@pytest.mark.parametrize(
    ("scheduling", "kinds"),
    [
        (WELL, []),
        (PAUSED, ["paused"]),
        (DOWN, ["failed"]),
        (replace(DOWN, failures=2), []),
        (replace(DOWN, failures=1, failure_is_permanent=True), ["failed"]),
        (replace(PAUSED, is_active=False), []),
    ],
    ids=["well", "paused", "third failure", "second failure", "failure that does not pass", "disabled"],
)
def test_what_calls_for_the_operator(scheduling: Scheduling, kinds: list[str]) -> None:
    assert [each.kind for each in found(scheduling)] == kinds


def test_a_failure_is_told_with_its_reason_and_run():
    (problem,) = found(DOWN)
    assert (problem.name, problem.reason, problem.run_id) == ("sync", "down", "run")


def test_everything_is_told_once_and_once_more_when_it_is_over():
    operator = Operator()
    for minute in range(0, 600, 10):
        operator.plan(PAUSED, REJECTED, at=NOW + timedelta(minutes=minute))
    assert operator.told == ["paused", "check"]
    for minute in range(600, 1200, 10):
        operator.plan(at=NOW + timedelta(minutes=minute))
    assert sorted(operator.told[2:]) == ["no longer check", "no longer paused"]
    assert operator.alerts == {}


def test_what_goes_on_is_told_again_after_a_day():
    operator = Operator()
    for hour in range(73):
        operator.plan(PAUSED, at=NOW + timedelta(hours=hour))
    assert operator.told == ["paused", "still paused", "still paused", "still paused"]


def test_without_repetition_it_is_told_once_for_ever():
    alert = Alert("org", "sync", "paused", "bad key", NOW, NOW)
    plan = plan_alerts(found(PAUSED), [alert], {"org"}, NOW + 100 * DAY, None)
    assert plan == AlertPlan((), (), (), (), ())


def test_failures_that_end_in_a_pause_are_told_as_both_and_the_way_back_only_when_a_sync_has_succeeded():
    operator = Operator()
    operator.plan(DOWN)
    operator.plan(replace(PAUSED, failures=4))
    # The key is replaced, and the sync has still to show that it works.
    operator.plan(replace(PAUSED, failures=4, paused_at=None, pause_reason=None))
    operator.plan(replace(DOWN, failures=1))
    assert operator.told == ["failed", "paused"]
    operator.plan(WELL)
    assert operator.told[2:] == ["no longer paused"]


def test_a_failing_sync_explains_why_nothing_is_fresh():
    operator = Operator()
    operator.plan(PAUSED, STALE)
    # A new key, and a failure that is not worth telling of.
    operator.plan(replace(DOWN, failures=1), STALE)
    assert operator.told == ["paused"]
    operator.plan(WELL)
    assert operator.told == ["paused", "no longer paused"]


def test_a_pause_that_follows_a_pause_is_told_of():
    operator = Operator()
    operator.plan(PAUSED)
    operator.plan(replace(PAUSED, paused_at=None, pause_reason=None), at=NOW + timedelta(minutes=5))
    operator.plan(replace(PAUSED, paused_at=NOW + timedelta(minutes=10)), at=NOW + timedelta(minutes=11))
    operator.plan(replace(PAUSED, paused_at=NOW + timedelta(minutes=10)), at=NOW + timedelta(minutes=12))
    assert operator.told == ["paused", "paused"]


def test_staleness_that_was_told_before_the_sync_failed_is_over_when_it_is_over():
    operator = Operator()
    operator.plan(WELL, STALE)
    operator.plan(PAUSED, STALE)
    assert operator.told == ["check", "paused"]
    operator.plan(WELL)
    assert sorted(operator.told[2:]) == ["no longer check", "no longer paused"]


def test_of_an_organization_that_was_disabled_or_removed_nothing_more_is_told():
    operator = Operator()
    operator.plan(PAUSED, REJECTED)
    operator.plan(replace(PAUSED, is_active=False), REJECTED, is_watched=False)
    assert operator.told == ["paused", "check"]
    assert operator.alerts == {}


SCHEDULINGS = st.sampled_from([WELL, PAUSED, DOWN, replace(DOWN, failures=1)])
STATES = st.lists(st.tuples(SCHEDULINGS, st.sets(st.sampled_from([REJECTED, STALE]))), max_size=40)


@given(STATES)
def test_whatever_happens_beginnings_and_ends_alternate(states: list[tuple[Scheduling, set[CheckResult]]]) -> None:
    operator = Operator()
    open_names: Counter[str] = Counter()
    for number, (scheduling, checks) in enumerate(states):
        plan = operator.plan(scheduling, *checks, at=NOW + number * timedelta(minutes=1))
        assert not plan.repeated
        for problem in plan.raised:
            assert open_names[problem.name] == 0 or problem.kind == "paused"
            open_names[problem.name] = 1
        for alert in plan.recovered:
            assert open_names[alert.name] == 1
            open_names[alert.name] = 0
    operator.plan(WELL, at=NOW + timedelta(hours=1))
    assert operator.alerts == {}
