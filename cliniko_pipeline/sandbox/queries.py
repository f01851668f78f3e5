"""The parser of a list request's query string with filters, sort order and page.

A refused query raises `QueryError` with the text of the API's 400 response.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, TypeVar

from cliniko_pipeline.sandbox.faults import RefusedField
from cliniko_pipeline.sandbox.resources import FieldKind, Resource

DEFAULT_PER_PAGE = 50
MAX_PER_PAGE = 100

_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": lambda value, bound: value >= bound,
    "<=": lambda value, bound: value <= bound,
    ">": lambda value, bound: value > bound,
    "<": lambda value, bound: value < bound,
}
_OPERATORS: dict[FieldKind, tuple[str, ...]] = {
    # Longer operators come first, because the first operator that fits is used.
    FieldKind.DATE_TIME: ("!?", ">=", "<=", ">", "<", "?", "*"),
    FieldKind.DATE: ("!?", ">=", "<=", ">", "<", "?", "*"),
    FieldKind.NUMBER: ("!?", "!=", ">=", "<=", ">", "<", "=", "?"),
    FieldKind.TEXT: ("!?", "!=", "~~", "~", "=", "?"),
    FieldKind.BOOLEAN: ("!=", "="),
    FieldKind.ARRAY: ("~",),
}
_WITHOUT_VALUE = frozenset({"?", "!?", "*"})


class QueryError(Exception):
    """The refusal of a query. The text contains the field or parameter, never a value."""


@dataclass(frozen=True, slots=True)
class Filter:
    """One parameter `q[]`. `holds` returns whether a value of the field matches."""

    field: str
    text: str
    matches_any: bool
    holds: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class SortField:
    """One field of the sort order."""

    field: str
    descending: bool


_UsedT = TypeVar("_UsedT", Filter, SortField)


@dataclass(frozen=True, slots=True)
class Query:
    """A parsed list request."""

    filters: tuple[Filter, ...]
    sort: tuple[SortField, ...]
    page: int
    per_page: int

    @property
    def key(self) -> tuple[object, ...]:
        """A key that is equal for queries with the same filters and sort order."""
        return (tuple(sorted(condition.text for condition in self.filters)), self.sort)


def read_query(
    resource: Resource, parameters: Iterable[tuple[str, str]], refused: Sequence[RefusedField] = ()
) -> Query:
    """Return the query that the decoded parameters describe.

    The fields in `refused` cannot be used to filter or sort. Unknown parameters are ignored. A `per_page` above the
    maximum is reduced to the maximum. Raise QueryError for a refused query.
    """
    pairs = list(parameters)
    single = dict(pairs)
    filters = tuple(_read_filter(resource, text) for name, text in pairs if name == "q[]")
    sort = _read_sort(resource, single.get("sort", ""), single.get("order", "asc"))
    return Query(
        filters=_without_refused(filters, "filter", refused),
        sort=_without_refused(sort, "sort", refused) or (SortField("created_at", descending=False),),
        page=_read_positive(single, "page", 1),
        per_page=min(_read_positive(single, "per_page", DEFAULT_PER_PAGE), MAX_PER_PAGE),
    )


def _without_refused(used: tuple[_UsedT, ...], use: str, refused: Sequence[RefusedField]) -> tuple[_UsedT, ...]:
    """Leave out fields that are refused silently. Raise QueryError for other refused fields."""
    silent = {refusal.field: refusal.silently for refusal in refused if refusal.use == use}
    for usage in used:
        if silent.get(usage.field) is False:
            raise QueryError(f"{usage.field} is not {'filterable' if use == 'filter' else 'sortable'}")
    return tuple(usage for usage in used if usage.field not in silent)


def _read_positive(parameters: dict[str, str], name: str, default: int) -> int:
    text = parameters.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise QueryError(f"{name} is not a positive number")
    return int(text)


def _read_sort(resource: Resource, text: str, order: str) -> tuple[SortField, ...]:
    if order not in {"asc", "desc"}:
        raise QueryError("order is neither asc nor desc")
    return tuple(_read_sort_field(resource, part, order) for part in (text or "created_at").split(","))


def _read_sort_field(resource: Resource, text: str, order: str) -> SortField:
    field, _, direction = text.partition(":")
    if field not in resource.fields:
        raise QueryError(f"{field} is not sortable")
    if direction not in {"", "asc", "desc"}:
        raise QueryError(f"{field} has an unknown sort direction")
    return SortField(field, (direction or order) == "desc")


def _read_filter(resource: Resource, text: str) -> Filter:
    field, _, condition = text.partition(":")
    kind = resource.fields.get(field)
    if kind is None:
        raise QueryError(f"{field} is not filterable")
    operator = next((candidate for candidate in _OPERATORS[kind] if condition.startswith(candidate)), None)
    if operator is None:
        raise QueryError(f"{field} does not take this operator")
    value = condition.removeprefix(operator)
    if (operator in _WITHOUT_VALUE) == bool(value):
        raise QueryError(f"{field} has a malformed filter")
    return Filter(field, text, operator == "*", _condition(field, kind, operator, value))


def _condition(field: str, kind: FieldKind, operator: str, text: str) -> Callable[[Any], bool]:
    if operator == "*":
        return lambda _: True
    if operator in {"?", "!?"}:
        wanted = operator == "?"
        return lambda value: (value is not None) is wanted
    if operator in {"~", "~~"}:
        return _matching(kind, operator, text)
    return _comparing(operator, _read_values(field, kind, operator, text))


def _comparing(operator: str, values: list[Any]) -> Callable[[Any], bool]:
    if operator in {"=", "!="}:
        accepted, wanted = frozenset(values), operator == "="
        # As in SQL, a field without a value is neither equal nor unequal to a value, so it never matches.
        return lambda value: value is not None and (value in accepted) is wanted
    compare, bound = _COMPARISONS[operator], values[0]
    return lambda value: value is not None and compare(value, bound)


def _matching(kind: FieldKind, operator: str, text: str) -> Callable[[Any], bool]:
    if kind is FieldKind.ARRAY:
        return lambda value: value is not None and text in value
    if operator == "~":
        part = text.casefold()
        return lambda value: value is not None and part in value.casefold()
    pattern = re.compile(".*".join(map(re.escape, text.split("%"))), re.IGNORECASE | re.DOTALL)
    return lambda value: value is not None and pattern.fullmatch(value) is not None


def _read_values(field: str, kind: FieldKind, operator: str, text: str) -> list[Any]:
    if kind is FieldKind.NUMBER and operator in {"=", "!="}:
        return [_read_value(field, kind, part) for part in text.split(",")]
    return [_read_value(field, kind, text)]


def _read_value(field: str, kind: FieldKind, text: str) -> Any:
    readers: dict[FieldKind, Callable[[str], Any]] = {
        FieldKind.DATE_TIME: _read_date_time,
        FieldKind.DATE: lambda value: date.fromisoformat(value).isoformat(),
        FieldKind.NUMBER: _read_number,
        FieldKind.BOOLEAN: lambda value: {"true": True, "false": False}[value],
    }
    try:
        return readers.get(kind, str)(text)
    except (ValueError, KeyError) as error:
        raise QueryError(f"{field} has a malformed value") from error


def _read_date_time(text: str) -> str:
    if not _DATE_TIME.fullmatch(text):
        raise ValueError
    datetime.fromisoformat(text)
    return text


def _read_number(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,20}", text):
        raise ValueError
    return int(text)
