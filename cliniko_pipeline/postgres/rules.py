"""The rules that decide which attendances are recent and counted."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta


@dataclass(frozen=True)
class Rules:
    """The settings that decide which attendances are recent and counted."""

    activity_window: timedelta
    count_no_shows: bool

    def window_start(self, as_of: datetime) -> datetime:
        """Return the start of the activity window that ends at `as_of`."""
        try:
            return as_of - self.activity_window
        except OverflowError:  # The start would be before year 1.
            return datetime.min.replace(tzinfo=UTC)

    def parameters(self, as_of: datetime) -> dict[str, object]:
        """Return the parameters of active_patients.sql."""
        return {"as_of": as_of, **self.lasting_parameters}

    @property
    def lasting_parameters(self) -> dict[str, object]:
        """The parameters of active_patients.sql that do not depend on the time."""
        return {"activity_window": self.activity_window, "count_no_shows": self.count_no_shows}
