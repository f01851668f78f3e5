"""How an operator wants a sync to be: from the command line's arguments to the configuration of a run."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class SyncOptions:
    """Attributes:
    as_of: the instant to judge by; None: now.
    full: read everything from the beginning, and mark what Cliniko no longer has as deleted.
    accept_deletions: believe it, too, when a suspicious share of the records is gone.
    """

    as_of: datetime | None = None
    full: bool = False
    accept_deletions: bool = False
