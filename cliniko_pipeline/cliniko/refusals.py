"""The fields by which Cliniko refuses to sort or filter an account's lists: what is refused is not sent again."""

from dataclasses import dataclass, field
from typing import Literal

Use = Literal["sort", "filter"]


@dataclass
class Refusals:
    """What was refused since the client was opened."""

    _refused: set[tuple[str, Use, str]] = field(default_factory=set[tuple[str, Use, str]])

    def add(self, resource: str, use: Use, name: str) -> bool:
        """Note a refusal; return whether it is a new one."""
        is_new = (resource, use, name) not in self._refused
        self._refused.add((resource, use, name))
        return is_new

    def allows(self, resource: str, use: Use, name: str) -> bool:
        """Whether the field can be sent, as far as is known."""
        return (resource, use, name) not in self._refused

    def texts(self, resource: str) -> list[str]:
        """Return what is refused and what follows from it, a sentence for each."""
        return [
            f"Cliniko refuses to {use} {of} by {name}: {_consequence(use, name)}"
            for of, use, name in sorted(self._refused)
            if of == resource
        ]


def _consequence(use: Use, name: str) -> str:
    if use == "sort":
        return WITHOUT_SORT
    return WITHOUT_FILTER.get(name, "more is read than is needed")


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
