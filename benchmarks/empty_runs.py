"""The empty Dagster project of the benchmark of runs: four assets that do nothing.

It imports only Dagster, so that its runs cost what Dagster costs.
"""

from pathlib import Path

import dagster as dg

JOB = "empty"
LOCATION = "empty_runs"
DUE_FILE = "empty_runs_due"
"""A file in Dagster's home: the partitions that the next tick requests, one a line."""

_PARTITIONS = dg.DynamicPartitionsDefinition(name="organizations")


@dg.asset(partitions_def=_PARTITIONS)
def first() -> None:
    """Do nothing."""


@dg.asset(partitions_def=_PARTITIONS, deps=[first])
def second() -> None:
    """Do nothing."""


@dg.asset(partitions_def=_PARTITIONS, deps=[first, second])
def third() -> None:
    """Do nothing."""


@dg.asset(partitions_def=_PARTITIONS, deps=[first, second, third])
def fourth() -> None:
    """Do nothing."""


_JOB = dg.define_asset_job(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    JOB, selection=[first, second, third, fourth], executor_def=dg.in_process_executor
)


@dg.schedule(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    job=_JOB,
    cron_schedule="* * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def empty_runs(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
    """Request a run for each due partition, once."""
    due = Path(context.instance.root_directory) / DUE_FILE
    if not due.exists():
        return dg.SkipReason("Nothing is due.")
    partitions = due.read_text(encoding="utf-8").split()
    due.unlink()
    return [
        dg.RunRequest(
            run_key=f"{each} {context.scheduled_execution_time.isoformat()}",
            partition_key=each,
            tags={"dagster/partition": each},
        )
        for each in partitions
    ]


@dg.definitions
def definitions() -> dg.Definitions:
    """Return what the code server loads."""
    return dg.Definitions(
        assets=[first, second, third, fourth], jobs=[_JOB], schedules=[empty_runs], executor=dg.in_process_executor
    )
