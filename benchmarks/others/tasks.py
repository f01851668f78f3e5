"""The task of each contender of the benchmark of syncs, and how Cliniko wants to be asked."""

from dataclasses import dataclass

PAGE_SIZE = 100


@dataclass(frozen=True)
class Task:
    """An account to read into a migrated database. `folder` is empty, and the contender's own."""

    api_url: str
    api_key: str
    host: str
    database_url: str
    folder: str
    patients: int
    appointments: int

    def pages(self) -> list[tuple[str, str]]:
        """Return the resource and the path of each page."""
        return [
            (resource, f"{resource}?{query_string(resource)}&page={number}")
            for resource, records in (("patients", self.patients), ("individual_appointments", self.appointments))
            for number in range(1, -(-records // PAGE_SIZE) + 1)
        ]


HEADERS = {"Accept": "application/json", "User-Agent": "benchmark (benchmark@example.com)"}

EVERYTHING = {
    "patients": ("archived_at:*",),
    "individual_appointments": ("archived_at:*", "cancelled_at:*", "deleted_at:*"),
}
"""The filters without which Cliniko leaves records out."""


def query_string(resource: str) -> str:
    """Return a page's query without its number."""
    filters = "".join(f"&q%5B%5D={each.replace(':', '%3A')}" for each in EVERYTHING[resource])
    return f"per_page={PAGE_SIZE}&sort=created_at,id{filters}"
