"""Asset checks that read only the database, and their Dagster definitions."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import dagster as dg
from sqlalchemy.engine import Connection

from cliniko_pipeline.instants import parse_instant
from cliniko_pipeline.orchestration.checks.results import (
    errors_as_failures,
    organization_of,
    partitioned_checks,
    store_results,
)
from cliniko_pipeline.orchestration.partitions import ORGANIZATIONS
from cliniko_pipeline.orchestration.runs.recomputation import is_forced
from cliniko_pipeline.postgres.operator_tables import sync_runs
from cliniko_pipeline.runtime import Runtime

REUSED = "is_reused"
"""The metadata label of a result that was computed earlier from the same rows."""


@dataclass(frozen=True)
class CheckOutcome:
    """The result of a check, with an explanation and with the numbers that decided it."""

    passed: bool
    remark: str
    numbers: Mapping[str, int | float]


@dataclass(frozen=True)
class CheckedOrganization:
    """The input of a check.

    Attributes:
        connection: a transaction in the organization context.
        as_of: the time that separates past from upcoming appointments in this run.
        force: whether to compute the result even if a result for the same rows is stored.
    """

    connection: Connection
    runtime: Runtime
    organization_id: str
    as_of: datetime
    force: bool


@dataclass(frozen=True)
class Check:
    """An asset check. If a blocking check fails, the downstream assets stay unchanged."""

    asset: dg.AssetsDefinition
    name: str
    description: str
    severity: dg.AssetCheckSeverity
    run: Callable[[CheckedOrganization], CheckOutcome]
    is_blocking: bool = False

    @property
    def key(self) -> dg.AssetCheckKey:
        """Dagster's key of the check."""
        return dg.AssetCheckKey(self.asset.key, self.name)


def define_checks(name: str, checks: Iterable[Check]) -> dg.AssetChecksDefinition:
    """Define the checks as one step of a run, because a step costs more than the checks."""
    by_key = {check.key: check for check in checks}

    def run_checks(
        context: dg.AssetCheckExecutionContext, runtime: dg.ResourceParam[Runtime]
    ) -> Iterator[dg.AssetCheckResult]:
        with errors_as_failures():
            organization_id = organization_of(context)
            selected = [by_key[key] for key in sorted(context.selected_asset_check_keys)]
            with runtime.database.organization(organization_id) as connection:
                force = is_forced(context.job_def, context.run.run_config)
                checked = CheckedOrganization(connection, runtime, organization_id, _as_of(context, runtime), force)
                outcomes = [(check, check.run(checked)) for check in selected]
                _record_blocked_run(connection, context, outcomes)
            results = [_result(check, outcome) for check, outcome in outcomes]
            store_results(context, runtime, organization_id, results)
            yield from results

    with partitioned_checks():
        specs = [
            dg.AssetCheckSpec(
                check.name,
                asset=check.asset,
                description=check.description,
                blocking=check.is_blocking,
                partitions_def=ORGANIZATIONS,
            )
            for check in by_key.values()
        ]
        return dg.multi_asset_check(name=name, specs=specs, can_subset=True)(run_checks)


def _as_of(context: dg.AssetCheckExecutionContext, runtime: Runtime) -> datetime:
    config: Any = context.run.run_config
    as_of: str | None = config.get("ops", {}).get("active_patients", {}).get("config", {}).get("as_of")
    return runtime.now() if as_of is None else parse_instant(as_of)


def _result(check: Check, outcome: CheckOutcome) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=check.asset.key,
        check_name=check.name,
        passed=outcome.passed,
        severity=check.severity,
        description=outcome.remark,
        metadata=outcome.numbers,
    )


def _record_blocked_run(
    connection: Connection, context: dg.AssetCheckExecutionContext, outcomes: Iterable[tuple[Check, CheckOutcome]]
) -> None:
    """Record failed blocking checks in `cliniko.sync_runs`. Dagster ends the run by itself."""
    for check, outcome in outcomes:
        if check.is_blocking and not outcome.passed:
            sync_runs.note_finished(
                connection,
                run_id=context.run.run_id,
                asset=check.asset.key.to_user_string(),
                counts={},
                requests=0,
                seconds_waited=0.0,
                error=f"The check {check.name} failed: {outcome.remark}",
            )
