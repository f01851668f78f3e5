"""The options of a sync, and the names of its job, assets and run tags, without Dagster."""

from dataclasses import dataclass
from datetime import datetime

JOB = "cliniko_sync"
SYNC_ASSETS = frozenset({"cliniko/patients", "cliniko/appointments", "contact_mapping", "active_patients"})
"""The assets of a sync."""

PARTITIONS = "organizations"
"""The name of Dagster's set of dynamic partitions, with one partition per organization."""

UNFINISHED_STATUSES = ("NOT_STARTED", "QUEUED", "STARTING", "STARTED", "CANCELING")
"""Dagster's statuses of runs that have not ended."""

PARTITION_TAG = "dagster/partition"
"""The tag with the organization of a run."""
FULL_TAG = "cliniko_pipeline/full"
"""The tag that says whether a run reads all records."""
TERMINAL_TAG = "cliniko_pipeline/terminal"
"""The tag of runs that the command line executes in its own process."""
QUEUE_TAG = "dagster-celery/queue"
"""The tag with the queue of Celery that a run waits in. Without it, the run waits in the launcher's default queue."""
LONG_QUEUE = "long"
"""The queue of syncs that may take hours, so that they do not hold up the others: first and full syncs, backfills."""


@dataclass(frozen=True)
class SyncOptions:
    """The options of one sync.

    Attributes:
        as_of: the instant that "recent" and "upcoming" refer to, None for the current time.
        full: read all records, and mark records as deleted that Cliniko no longer has.
        accept_deletions: mark records as deleted even if suspiciously many are missing.
        accept_unmatched: map contacts even if suspiciously many patients lose their contact.
    """

    as_of: datetime | None = None
    full: bool = False
    accept_deletions: bool = False
    accept_unmatched: bool = False


def run_config(options: SyncOptions) -> dict[str, object]:
    """Return the run configuration of the job `cliniko_sync`."""
    extraction = {"config": {"full": options.full, "accept_deletions": options.accept_deletions}}
    as_of = {} if options.as_of is None else {"as_of": options.as_of.isoformat()}
    return {
        "ops": {
            "cliniko__patients": extraction,
            "cliniko__appointments": extraction,
            "contact_mapping": {"config": {"accept_unmatched": options.accept_unmatched}},
            "active_patients": {"config": as_of},
        }
    }


def run_tags(organization_id: str, options: SyncOptions, *, is_first: bool = False) -> dict[str, str]:
    """Return the tags of a requested run of `cliniko_sync`."""
    queue = {QUEUE_TAG: LONG_QUEUE} if options.full or is_first else {}
    return {PARTITION_TAG: organization_id, FULL_TAG: str(options.full).lower()} | queue
