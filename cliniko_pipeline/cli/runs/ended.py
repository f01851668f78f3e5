"""The message that a worker process sends at the end of a sync."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """The end of an organization's sync. If `is_last`, the worker process ends too."""

    error: str | None
    is_last: bool = False
