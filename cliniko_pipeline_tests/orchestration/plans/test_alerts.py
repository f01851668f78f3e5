"""Tests of which alerts are raised, repeated and ended."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliniko_pipeline.orchestration.plans.alerts import AlertPlan, Problem, find_problems, plan_alerts
from cliniko_pipeline.postgres.operator_tables.alerts import Alert
from cliniko_pipeline.postgres.operator_tables.check_results import CheckResult
from cliniko_pipeline.postgres.operator_tables.scheduling import Scheduling

NOW = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
DAY = timedelta(days=1)
FRESH = "is_fresh"
WELL = Scheduling("org")
PAUSED = replace(WELL, paused_at=NOW, pause_reason="bad key", failure_reason="bad key", failure_is_permanent=True)
DOWN = replace(WELL, failures=3, failure_reason="down", failed_run_id="run")
REJECTED = CheckResult("org", "cliniko/patients", "nothing_was_rejected", holds=False, remark="3", run_id="run")
STALE = CheckResult("org", "active_patients", FRESH, holds=False, remark="old", run_id=None)


def found(*schedulings: Scheduling, checks: tuple[CheckResult, ...] = ()) -> list[Problem]:
    return find_problems(schedulings, checks, after_failures=3, freshness_check=FRESH)


class Operator:
    """An operator whom the plans notify. `notified` has the kinds of alerts in order."""

    def __init__(self) -> None:
        self.alerts: dict[tuple[str, str], Alert] = {}
        self.notified: list[str] = []

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
        self.notified += [problem.kind for problem in plan.raised]
        self.notified += [f"still {problem.kind}" for problem in plan.repeated]
        self.notified += [f"no longer {problem.kind}" for problem in plan.recovered]
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
)
def test_problem_is_raised_for_pauses_and_failures(scheduling: Scheduling, kinds: list[str]) -> None:
    of_sync = [("sync", kind, scheduling.failure_reason, scheduling.failed_run_id) for kind in kinds]
    assert [(problem.name, problem.kind, problem.reason, problem.run_id) for problem in found(scheduling)] == of_sync


def test_open_alert_is_repeated_after_a_day_until_it_ends():
    operator = Operator()
    for hour in range(49):
        operator.plan(PAUSED, REJECTED, at=NOW + timedelta(hours=hour))
    assert operator.notified == ["paused", "check", *["still paused", "still check"] * 2]
    for hour in range(49, 99):
        operator.plan(at=NOW + timedelta(hours=hour))
    assert sorted(operator.notified[6:]) == ["no longer check", "no longer paused"]
    assert operator.alerts == {}


def test_open_alert_is_never_repeated_without_a_period():
    alert = Alert("org", "sync", "paused", "bad key", NOW, NOW)
    plan = plan_alerts(found(PAUSED), [alert], {"org"}, NOW + 100 * DAY, None)
    assert plan == AlertPlan((), (), (), (), ())


def test_alert_of_failure_and_pause_ends_with_a_success():
    operator = Operator()
    operator.plan(DOWN)
    operator.plan(replace(PAUSED, failures=4))
    # The key is replaced, and no sync has used the new key yet.
    operator.plan(replace(PAUSED, failures=4, paused_at=None, pause_reason=None))
    operator.plan(replace(DOWN, failures=1))
    assert operator.notified == ["failed", "paused"]
    operator.plan(WELL)
    assert operator.notified[2:] == ["no longer paused"]


def test_failing_sync_raises_no_staleness_alert():
    operator = Operator()
    operator.plan(PAUSED, STALE)
    operator.plan(replace(DOWN, failures=1), STALE)  # after a new key was stored
    operator.plan(WELL)
    assert operator.notified == ["paused", "no longer paused"]


def test_staleness_alert_before_a_failure_ends_with_it():
    operator = Operator()
    for state in ((WELL, STALE), (PAUSED, STALE), (WELL,)):
        operator.plan(*state)
    assert operator.notified[:2] == ["check", "paused"]
    assert sorted(operator.notified[2:]) == ["no longer check", "no longer paused"]


def test_second_pause_is_another_alert():
    operator = Operator()
    again = replace(PAUSED, paused_at=NOW + timedelta(minutes=10))
    operator.plan(PAUSED)
    for scheduling in (replace(PAUSED, paused_at=None, pause_reason=None), again, again):
        operator.plan(scheduling, at=NOW + timedelta(minutes=11))
    assert operator.notified == ["paused", "paused"]


def test_disabled_organization_has_no_alerts():
    operator = Operator()
    operator.plan(PAUSED, REJECTED)
    operator.plan(replace(PAUSED, is_active=False), REJECTED, is_watched=False)
    assert operator.notified == ["paused", "check"]
    assert operator.alerts == {}


SCHEDULINGS = st.sampled_from([WELL, PAUSED, DOWN, replace(DOWN, failures=1)])
STATES = st.lists(st.tuples(SCHEDULINGS, st.sets(st.sampled_from([REJECTED, STALE]))), max_size=40)


@given(STATES)
def test_raised_and_ended_alerts_alternate(states: list[tuple[Scheduling, set[CheckResult]]]) -> None:
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
