"""How somebody wants a sync to be: from the command line's arguments, or a request's, to the configuration of a run."""

from dataclasses import dataclass
from datetime import datetime

JOB = "cliniko_sync"
WHOLE_SYNC = frozenset({"cliniko/patients", "cliniko/appointments", "contact_mapping", "active_patients"})
"""The job, and the assets that it makes."""

PARTITION_TAG = "dagster/partition"
FULL_TAG = "cliniko_pipeline/full"
TERMINAL_TAG = "cliniko_pipeline/terminal"
"""What runs are tagged with: whose they are, whether they read everything, whether a terminal runs them."""


@dataclass(frozen=True)
class SyncOptions:
    """Attributes:
    as_of: the instant to judge by; None: now.
    full: read everything from the beginning, and mark what Cliniko no longer has as deleted.
    accept_deletions: believe it, too, when a suspicious share of the records is gone.
    accept_unmatched: believe it when a suspicious share of the matches of patients and contacts is lost.
    """

    as_of: datetime | None = None
    full: bool = False
    accept_deletions: bool = False
    accept_unmatched: bool = False


def run_config(options: SyncOptions) -> dict[str, object]:
    """The options as the job `cliniko_sync` takes them."""
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
