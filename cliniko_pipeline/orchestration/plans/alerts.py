"""Pure functions that decide which alerts are due.

An organization has a problem if its sync is paused, if its sync failed several times, or if a check failed. It is a
problem of all organizations if no organization is found (`missing`). An alert is sent when a problem appears, and when
a failed sync is paused. It is repeated once a day (a setting). Another message is sent when the problem is solved.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cliniko_pipeline.postgres.operator_tables.alerts import Alert
from cliniko_pipeline.postgres.operator_tables.check_results import CheckResult
from cliniko_pipeline.postgres.operator_tables.scheduling import Scheduling

SYNC = "sync"
PAUSED = "paused"
FAILED = "failed"
CHECK = "check"
MISSING = "missing"

ALL_ORGANIZATIONS = "all organizations"
"""The id in a problem that affects all organizations."""


@dataclass(frozen=True)
class Problem:
    """Something that is wrong now.

    Attributes:
        name: `sync`, or the asset and the name of a check. It is unique within the organization.
        kind: paused, failed, check or missing.
        reason: what happened and, for an error, what to do about it.
        run_id: the run that found the problem, or None if no run did.
        is_implied: whether a failing or paused sync explains the problem, so that the problem needs no alert.
        since: when the pause of a paused sync began.
    """

    organization_id: str
    name: str
    kind: str
    reason: str
    run_id: str | None
    is_implied: bool = False
    since: datetime | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The key that the problem and its alert have in common."""
        return self.organization_id, self.name


@dataclass(frozen=True)
class AlertPlan:
    """The alerts to send, save and delete.

    Attributes:
        raised: the problems to send an alert about for the first time.
        repeated: the problems to send an alert about again.
        recovered: the alerts whose problem is solved. A message about this is sent.
        forgotten: the alerts of disabled or removed organizations. No message is sent.
        kept: the alerts of `raised` and `repeated`, which are saved.
    """

    raised: tuple[Problem, ...]
    repeated: tuple[Problem, ...]
    recovered: tuple[Alert, ...]
    forgotten: tuple[Alert, ...]
    kept: tuple[Alert, ...]


def find_problems(
    schedulings: Iterable[Scheduling], failed_checks: Iterable[CheckResult], after_failures: int, freshness_check: str
) -> list[Problem]:
    """Return the problems of the active organizations.

    `after_failures` is the number of consecutive transient failures before an alert. A failed `freshness_check` is
    implied if the sync fails or is paused.
    """
    active = [state for state in schedulings if state.is_active]
    watched = {state.organization_id for state in active}
    syncs = [problem for state in active if (problem := _sync_problem(state, after_failures)) is not None]
    failing = {
        state.organization_id for state in active if state.failure_reason is not None or state.paused_at is not None
    }
    checks = [
        Problem(
            check.organization_id,
            name=f"{check.asset} {check.name}",
            kind=CHECK,
            reason=check.remark,
            run_id=check.run_id,
            is_implied=check.name == freshness_check and check.organization_id in failing,
        )
        for check in failed_checks
        if check.organization_id in watched
    ]
    return [*syncs, *checks]


def _sync_problem(scheduling: Scheduling, after_failures: int) -> Problem | None:
    kind = PAUSED if scheduling.paused_at is not None else FAILED
    reason = scheduling.pause_reason if kind == PAUSED else scheduling.failure_reason
    if reason is None:
        return None
    if kind == FAILED and not scheduling.failure_is_permanent and scheduling.failures < after_failures:
        return None
    since = scheduling.paused_at
    return Problem(scheduling.organization_id, SYNC, kind, reason, scheduling.failed_run_id, since=since)


def plan_alerts(
    found: Sequence[Problem],
    alerts: Sequence[Alert],
    watched: AbstractSet[str],
    now: datetime,
    repeat_after: timedelta | None,
    recovering: AbstractSet[str] = frozenset(),
) -> AlertPlan:
    """Compare the problems with the open alerts.

    `watched` contains the active organizations. `recovering` contains organizations whose last sync failed, even if it
    failed too seldom to be a problem. Their sync alerts stay open.
    """
    known = {(alert.organization_id, alert.name): alert for alert in alerts}
    raised = [problem for problem in found if _is_new(problem, known)]
    repeated = [problem for problem in found if problem not in raised and _is_due(problem, known, now, repeat_after)]
    present = {problem.key for problem in found} | {(organization_id, SYNC) for organization_id in recovering}
    solved = [alert for key, alert in known.items() if key not in present]
    return AlertPlan(
        tuple(raised),
        tuple(repeated),
        recovered=tuple(alert for alert in solved if alert.organization_id in watched),
        forgotten=tuple(alert for alert in alerts if alert.organization_id not in watched),
        kept=tuple(_alert(problem, known, now) for problem in (*raised, *repeated)),
    )


def _is_new(problem: Problem, known: Mapping[tuple[str, str], Alert]) -> bool:
    alert = known.get(problem.key)
    if alert is None:
        return not problem.is_implied
    # A failure after the end of a pause continues the old problem. A new pause is a new problem.
    return problem.kind == PAUSED and (
        alert.kind == FAILED or (problem.since is not None and problem.since > alert.told_at)
    )


def _is_due(
    problem: Problem, known: Mapping[tuple[str, str], Alert], now: datetime, repeat_after: timedelta | None
) -> bool:
    alert = known.get(problem.key)
    if alert is None or problem.is_implied or repeat_after is None:
        return False
    return now - alert.told_at >= repeat_after


def _alert(problem: Problem, known: Mapping[tuple[str, str], Alert], now: datetime) -> Alert:
    alert = known.get(problem.key)
    if alert is not None:
        return replace(alert, kind=problem.kind, reason=problem.reason, told_at=now)
    return Alert(problem.organization_id, problem.name, problem.kind, problem.reason, raised_at=now, told_at=now)
