"""Pure functions that decide which alerts are due.

An organization has a problem if its syncs are paused, if they failed several times or permanently, or if a check
failed. If all organizations have disappeared, that is one problem of all organizations (`missing`).

An alert is sent when a problem appears, and when failing syncs are paused. The alert is repeated once a day (a setting)
until a last message reports that the problem is solved.
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
"""The `organization_id` of a problem that affects all organizations."""


@dataclass(frozen=True)
class Problem:
    """Something that is wrong now.

    Attributes:
        name: `sync`, an asset and the name of its check, or `organizations`. An organization has one problem per name.
        kind: paused, failed, check or missing.
        reason: what happened and, for an error, what to do about it.
        run_id: the run that found the problem, or None if no run did.
        is_implied: whether the problem needs no alert, because a failing or paused sync explains it.
        since: when the pause began; None for other problems.
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
        """The key of the problem and of the alert about it."""
        return self.organization_id, self.name


@dataclass(frozen=True)
class AlertPlan:
    """The alerts to send, save and delete.

    Attributes:
        raised: the problems to send an alert about for the first time.
        repeated: the problems to send an alert about again.
        recovered: the alerts about solved problems, to delete after a last message.
        forgotten: the alerts of disabled or removed organizations, to delete without a message.
        kept: the alerts about the problems in `raised` and `repeated`, to save.
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

    `after_failures` is the number of consecutive transient failures that make a problem. `freshness_check` is the name
    of a check. If that check fails while the organization's syncs fail or are paused, the problem is implied.
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

    `watched` contains the active organizations. `recovering` contains the organizations whose last sync failed. Their
    open alerts about syncs stay open, even if the failures are too few to be a problem.
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
    # A pause is new if the alert is about failures or an earlier pause. Failures after a pause continue its problem.
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
