"""Runs and backfills that have not ended."""

import dagster as dg

from cliniko_pipeline.sync_options import PARTITION_TAG, UNFINISHED_STATUSES

UNFINISHED = [dg.DagsterRunStatus(status) for status in UNFINISHED_STATUSES]
WITH_PROCESS = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
"""The statuses of runs that a process executes. Dagster's run monitoring ends the runs that do not start in time."""

ENDED_BACKFILLS = {"COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED"}


def organizations_in_flight(instance: dg.DagsterInstance) -> set[str]:
    """Return the organizations with a queued or running run."""
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    return {run.tags[PARTITION_TAG] for run in runs if PARTITION_TAG in run.tags}


def has_backfill(instance: dg.DagsterInstance) -> bool:
    """Return whether any backfill has not ended. If its partitions are removed, it fails."""
    return any(backfill.status.value not in ENDED_BACKFILLS for backfill in instance.get_backfills(limit=100))
