"""What is to be told to the operator. Pure: decides, does nothing.

Everything wrong with an organization is one of: its sync (`paused`, or `failed` as often as matters) or a check that
does not hold. Of all of them it can be that none is found any more (`missing`). Each is told once, when it appears;
again when it has turned from failed to paused, and after a day (a setting); and once more when it is over.
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
"""Stands for the organization where a problem is of all of them."""


@dataclass(frozen=True)
class Problem:
    """Something that is wrong now.

    Attributes:
        name: what there can be one of at a time: `sync`, or the asset and name of a check.
        kind: paused, failed, check or missing.
        reason: what happened and, where it is an error's text, what to do about it.
        run_id: the run that found it; None: it was not a run.
        since: when a pause began.
        is_implied: whether a sync that fails or pauses explains it, and is what is told.
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
        """What it is recognized by."""
        return self.organization_id, self.name


@dataclass(frozen=True)
class AlertPlan:
    """What to tell, and what to keep.

    Attributes:
        raised, repeated: problems to tell for the first time, and again.
        recovered: alerts that are over, to be told.
        forgotten: alerts of organizations that are disabled or removed, not to be told.
        kept: the alerts to save: those of `raised` and `repeated`.
    """

    raised: tuple[Problem, ...]
    repeated: tuple[Problem, ...]
    recovered: tuple[Alert, ...]
    forgotten: tuple[Alert, ...]
    kept: tuple[Alert, ...]


def problems(
    schedulings: Iterable[Scheduling], failed_checks: Iterable[CheckResult], after_failures: int, freshness_check: str
) -> list[Problem]:
    """What is wrong with the organizations that are to be synced. `after_failures` is how many runs in a row must fail
    for a reason that passes; `freshness_check` the name of the check that a failing sync explains.
    """
    active = [each for each in schedulings if each.is_active]
    watched = {each.organization_id for each in active}
    syncs = [problem for each in active if (problem := _sync_problem(each, after_failures)) is not None]
    failing = {each.organization_id for each in active if each.failure_reason is not None or each.paused_at is not None}
    checks = [
        Problem(
            each.organization_id,
            name=f"{each.asset} {each.name}",
            kind=CHECK,
            reason=each.remark,
            run_id=each.run_id,
            is_implied=each.name == freshness_check and each.organization_id in failing,
        )
        for each in failed_checks
        if each.organization_id in watched
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
    """Compares what is wrong with what was told. `watched` are the organizations that are to be synced; `recovering`
    those whose sync is not over it yet, though it is no problem by itself any more (fewer failures than are told).
    """
    known = {(alert.organization_id, alert.name): alert for alert in alerts}
    raised = [each for each in found if _is_news(each, known)]
    repeated = [each for each in found if each not in raised and _is_due(each, known, now, repeat_after)]
    present = {each.key for each in found} | {(organization_id, SYNC) for organization_id in recovering}
    over = [alert for key, alert in known.items() if key not in present]
    return AlertPlan(
        tuple(raised),
        tuple(repeated),
        recovered=tuple(alert for alert in over if alert.organization_id in watched),
        forgotten=tuple(alert for alert in alerts if alert.organization_id not in watched),
        kept=tuple(_told(each, known, now) for each in (*raised, *repeated)),
    )


def _is_news(problem: Problem, known: Mapping[tuple[str, str], Alert]) -> bool:
    alert = known.get(problem.key)
    if alert is None:
        return not problem.is_implied
    # What a replaced key has not mended yet is not told as a new failure; but a new pause is news.
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


def _told(problem: Problem, known: Mapping[tuple[str, str], Alert], now: datetime) -> Alert:
    alert = known.get(problem.key)
    if alert is not None:
        return replace(alert, kind=problem.kind, reason=problem.reason, told_at=now)
    return Alert(problem.organization_id, problem.name, problem.kind, problem.reason, raised_at=now, told_at=now)
