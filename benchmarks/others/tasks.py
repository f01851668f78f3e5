"""The task of the contenders, with the headers and queries of its requests."""

from dataclasses import dataclass

PAGE_SIZE = 100
LARGEST = "individual_appointments"
_NAMES = {"appointment_types": 1, "practitioners": 1}


@dataclass(frozen=True)
class Task:
    """An account to read into a migrated database, where each patient has a contact.

    Attributes:
        folder: an empty folder for the contender's files.
        as_of: instant that separates recent from upcoming appointments, in ISO 8601.
    """

    api_url: str
    api_key: str
    host: str
    database_url: str
    folder: str
    patients: int
    appointments: int
    as_of: str

    def pages(self) -> list[tuple[str, str]]:
        """Return the resource and the path of each page."""
        return [
            (resource, f"{resource}?{query_string(resource)}&page={number}")
            for resource, records in {**_NAMES, "patients": self.patients, LARGEST: self.appointments}.items()
            for number in range(1, -(-records // PAGE_SIZE) + 1)
        ]


HEADERS = {"Accept": "application/json", "User-Agent": "benchmark (benchmark@example.com)"}

EVERYTHING: dict[str, tuple[str, ...]] = {
    "appointment_types": ("archived_at:*",),
    "practitioners": (),
    "patients": ("archived_at:*",),
    LARGEST: ("archived_at:*", "cancelled_at:*", "deleted_at:*"),
}
"""Filters that make Cliniko return all records, even archived, cancelled and deleted ones."""


def query_string(resource: str) -> str:
    """Return the query string of a page, without the page number."""
    filters = "".join(f"&q%5B%5D={condition.replace(':', '%3A')}" for condition in EVERYTHING[resource])
    return f"per_page={PAGE_SIZE}&sort=created_at,id{filters}"
