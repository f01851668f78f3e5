"""Runs of the main job in this very process, for the command line: the same runs the UI shows."""

from dataclasses import dataclass
from datetime import datetime

import dagster as dg


@dataclass(frozen=True)
class RunResult:
    """How a run ended; `error` is one line, None where it succeeded."""

    run_id: str
    error: str | None


def run_sync(
    definitions: dg.Definitions, instance: dg.DagsterInstance, organization_id: str, as_of: datetime | None
) -> RunResult:
    """Runs `cliniko_sync` for one organization, to its end. A failure is in the result; only an interruption raises."""
    configuration: dict[str, object] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    if as_of is not None:
        configuration["ops"] = {"active_patients": {"config": {"as_of": as_of.isoformat()}}}
    result = definitions.resolve_job_def("cliniko_sync").execute_in_process(
        instance=instance,
        partition_key=organization_id,
        run_config=configuration,
        raise_on_error=False,
    )
    return RunResult(result.run_id, None if result.success else _first_error(result))


def _first_error(result: dg.ExecuteInProcessResult) -> str:
    for event in result.all_events:
        if event.is_step_failure:
            told = event.step_failure_data.user_failure_data
            if told is not None and told.description:
                return told.description
            error = event.step_failure_data.error
            kind = (error.cause or error).cls_name if error is not None else None
            return f"An unexpected {kind or 'error'}; the run {result.run_id} in the Dagster UI has the details."
    return f"The run {result.run_id} failed before its first step; it is in the Dagster UI."
