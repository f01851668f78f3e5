"""The sort and filter fields that Cliniko has refused. Requests leave out these fields."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from cliniko_pipeline.errors import FieldRefusedError

Use = Literal["sort", "filter"]

_MAX_BODY_BYTES = 2_000
_WORD = re.compile(rb"[a-z_]+")
_NOT_POSSIBLE = re.compile(rb"([a-z_]+)\W+is not (?:a )?(sort|filter)")


@dataclass
class Refusals:
    """Refused fields by resource, as texts such as "filter updated_at"."""

    _refused: dict[str, set[str]] = field(default_factory=dict[str, set[str]])

    def add(self, resource: str, use: Use, name: str) -> bool:
        """Note a refusal; return whether it is new."""
        refused = self._refused.setdefault(resource, set())
        is_new = f"{use} {name}" not in refused
        refused.add(f"{use} {name}")
        return is_new

    def allows(self, resource: str, use: Use, name: str) -> bool:
        """Return False once Cliniko has refused this use of the field, else True."""
        return f"{use} {name}" not in self._refused.get(resource, ())

    def of(self, resource: str) -> list[str]:
        """Return the refused fields of a resource as a list that can be stored."""
        return sorted(self._refused.get(resource, ()))

    def remember(self, resource: str, refused: Iterable[str]) -> None:
        """Add stored refusals."""
        self._refused.setdefault(resource, set()).update(refused)


def find_refused_field(url: str, body: bytes) -> tuple[Use, str] | None:
    """Return the refused field's use and name, or None unless the body names exactly one.

    The body of an error may contain anything, so only its words are compared with the fields that were sent.
    """
    body = body[:_MAX_BODY_BYTES]
    match = _NOT_POSSIBLE.search(body)
    words = {word.decode() for word in (match.groups() if match else _WORD.findall(body))}
    parameters = parse_qs(urlsplit(url).query)
    filters = {condition.partition(":")[0] for condition in parameters.get("q[]", [])}
    sorts = {order.partition(":")[0] for order in parameters.get("sort", [""])[0].split(",")}
    found = sorted(words & (filters | sorts))
    if len(found) != 1:
        return None
    is_sort = found[0] in sorts and (found[0] not in filters or any(word.startswith("sort") for word in words))
    return ("sort" if is_sort else "filter"), found[0]


def field_refused(what: str, use: Use, name: str) -> FieldRefusedError:
    """Return the error for a refused field."""
    error = FieldRefusedError(f"{what}: Cliniko refuses to {use} this list by {name}")
    error.use, error.field = use, name
    return error


def consequence(resource: str, refused: str) -> str:
    """Return a sentence with the refusal and its consequence."""
    use, _, name = refused.partition(" ")
    effect = WITHOUT_SORT if use == "sort" else WITHOUT_FILTER.get(name, "more is read than is needed")
    return f"Cliniko refuses to {use} {resource} by {name}: {effect}"


WITHOUT_FILTER = {
    "archived_at": "archived records are not listed, and keep their last state until a full sync finds them missing",
    "cancelled_at": "cancelled records are not listed, and keep their last state until a full sync finds them missing",
    "deleted_at": "deleted records are not listed, and keep their last state until a full sync finds them missing",
    "updated_at": "every sync reads the list in full",
    "created_at": "records that are added while the list is read cause some of its pages to be read again",
    "id": "many records created in the same second are read several times",
}
"""The consequence of leaving out a filter, by the filter's field."""

WITHOUT_SORT = "records created in the same second are read once more if they are on two pages"
