"""Differences of this machine's clock and of Cliniko's clock from the database's clock."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cliniko_pipeline.errors import ClockSkewError

MACHINE = "This machine's clock"
CLINIKO = "Cliniko's clock"

_REPORTED_PART = 12
"""A difference above a twelfth of the limit is reported: with 60 minutes, one above 5."""

_REMEDIES = {
    MACHINE: "Correct the wrong clock, this machine's or the database server's, with NTP.",
    CLINIKO: "Correct the database server's clock with NTP; if Cliniko's is wrong, wait until it is corrected.",
}


@dataclass(frozen=True)
class ClockDifference:
    """How far a clock is ahead of the database's clock (negative if behind), and the limit."""

    clock: str
    ahead: timedelta
    allowed: timedelta

    @property
    def is_notable(self) -> bool:
        """Whether the difference is large enough to be reported."""
        return abs(self.ahead) > self.allowed / _REPORTED_PART

    def __str__(self) -> str:
        direction = "ahead of" if self.ahead > timedelta(0) else "behind"
        return f"{self.clock} is {_in_words(abs(self.ahead))} {direction} the database's"

    def require_allowed(self) -> None:
        """Raise ClockSkewError if the difference is larger than allowed."""
        if abs(self.ahead) > self.allowed:
            raise ClockSkewError(
                f"{self}, more than the {_in_words(self.allowed)} allowed (CLINIKO_MAX_CLOCK_SKEW_MINUTES): syncs"
                f" would use the wrong time. {_REMEDIES[self.clock]}"
            )


def at(unix_seconds: float) -> datetime:
    """Return the instant of a UNIX time, in UTC."""
    return datetime.fromtimestamp(unix_seconds, UTC)


def _in_words(time: timedelta) -> str:
    for unit, name in ((timedelta(days=1), "days"), (timedelta(hours=1), "hours"), (timedelta(minutes=1), "minutes")):
        if time >= 2 * unit:
            return f"{round(time / unit)} {name}"
    return f"{round(time.total_seconds())} seconds"
