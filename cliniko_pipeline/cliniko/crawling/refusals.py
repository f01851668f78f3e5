"""The fields by which Cliniko refuses to sort or filter an account's lists: what is refused is not sent again."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Use = Literal["sort", "filter"]


@dataclass
class Refusals:
    """What was refused since the client was opened, and what is remembered of earlier ones: texts such as
    "filter updated_at", by resource.
    """

    _refused: dict[str, set[str]] = field(default_factory=dict[str, set[str]])

    def add(self, resource: str, use: Use, name: str) -> bool:
        """Note a refusal; return whether it is a new one."""
        refused = self._refused.setdefault(resource, set())
        is_new = f"{use} {name}" not in refused
        refused.add(f"{use} {name}")
        return is_new

    def allows(self, resource: str, use: Use, name: str) -> bool:
        """Whether the field can be sent, as far as is known."""
        return f"{use} {name}" not in self._refused.get(resource, ())

    def of(self, resource: str) -> list[str]:
        """Return what is refused of the resource, to be remembered."""
        return sorted(self._refused.get(resource, ()))

    def remember(self, resource: str, refused: Iterable[str]) -> None:
        """Take over what an earlier client returned."""
        self._refused.setdefault(resource, set()).update(refused)


def consequence(resource: str, refused: str) -> str:
    """Say in a sentence what is refused and what follows from it."""
    use, _, name = refused.partition(" ")
    follows = WITHOUT_SORT if use == "sort" else WITHOUT_FILTER.get(name, "more is read than is needed")
    return f"Cliniko refuses to {use} {resource} by {name}: {follows}"


WITHOUT_FILTER = {
    "archived_at": "archived records are not listed, and keep their last state until a full sync misses them",
    "cancelled_at": "cancelled records are not listed, and count as before until a full sync misses them",
    "deleted_at": "deleted records are not listed, and count as before until a full sync misses them",
    "updated_at": "every sync reads the list in full",
    "created_at": "records that come while the list is read make it be read further back",
    "id": "many records of one second are read several times",
}
"""What follows where a filter is left out, by its field."""

WITHOUT_SORT = "where a page ends within records of one second, these are read once more"
