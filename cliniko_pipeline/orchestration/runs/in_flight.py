"""What Dagster has under way."""

import dagster as dg

from cliniko_pipeline.sync_options import PARTITION_TAG

_NOT_ENDED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
ENDED_BACKFILLS = {"COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED"}


def organizations_in_flight(instance: dg.DagsterInstance) -> set[str]:
    """The organizations with a run that has not ended, one that only waits in the queue included."""
    runs = instance.get_runs(dg.RunsFilter(statuses=_NOT_ENDED))
    return {run.tags[PARTITION_TAG] for run in runs if PARTITION_TAG in run.tags}


def has_backfill(instance: dg.DagsterInstance) -> bool:
    """Whether a backfill has not ended: Dagster fails it as a whole where a partition is gone that it names."""
    return any(backfill.status.value not in ENDED_BACKFILLS for backfill in instance.get_backfills(limit=100))
