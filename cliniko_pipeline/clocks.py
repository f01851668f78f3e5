"""Differences between clocks: this machine's, the database's and Cliniko's."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cliniko_pipeline.errors import ClockSkewError

MACHINE = "This machine's clock"
CLINIKO = "Cliniko's clock"

_NOTABLE_SHARE = 12
"""A difference above this part of the allowed one is reported: five minutes of an hour."""

_REMEDIES = {
    MACHINE: "Set this machine's clock right (NTP), and the clock of the database's server if that is the wrong one.",
    CLINIKO: "Set the clock of the database's server right (NTP), or wait if it is Cliniko's that is wrong.",
}


@dataclass(frozen=True)
class ClockDifference:
    """How far a clock is ahead of the database's (negative: behind), and how far it may be."""

    clock: str
    ahead: timedelta
    allowed: timedelta

    @property
    def is_notable(self) -> bool:
        """Whether people should know."""
        return abs(self.ahead) > self.allowed / _NOTABLE_SHARE

    def __str__(self) -> str:
        direction = "ahead of" if self.ahead > timedelta(0) else "behind"
        return f"{self.clock} is {_in_words(abs(self.ahead))} {direction} the database's"

    def require_allowed(self) -> None:
        """Raise ClockSkewError where the difference is larger than allowed."""
        if abs(self.ahead) > self.allowed:
            raise ClockSkewError(
                f"{self}, more than the {_in_words(self.allowed)} allowed (CLINIKO_MAX_CLOCK_SKEW_MINUTES): what is"
                f" due, recent and upcoming would be judged by the wrong time. {_REMEDIES[self.clock]}"
            )


def at(unix_seconds: float) -> datetime:
    """Return the instant of a UNIX time, in UTC."""
    return datetime.fromtimestamp(unix_seconds, UTC)


def _in_words(time: timedelta) -> str:
    for unit, name in ((timedelta(days=1), "days"), (timedelta(hours=1), "hours"), (timedelta(minutes=1), "minutes")):
        if time >= 2 * unit:
            return f"{round(time / unit)} {name}"
    return f"{round(time.total_seconds())} seconds"
