"""The records of one resource, serialised once, in the API's default order.

A table is not thread-safe. The account that owns a table protects it with a lock.
"""

import random
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, cast

from cliniko_pipeline.sandbox import wire
from cliniko_pipeline.sandbox.queries import Filter, Query, SortField
from cliniko_pipeline.sandbox.resources import FieldKind, Resource

_KEPT_SELECTIONS = 8
_MAX_DIGITS = 40
_DIRECT_FIELDS = {"id": "number", "created_at": "created_at", "updated_at": "updated_at"}
_BY_CREATION = SortField("created_at", descending=False)
_DEFAULT_ORDERS = ((_BY_CREATION,), (_BY_CREATION, SortField("id", descending=False)))
_HIDING_FIELDS = ("archived_at", "cancelled_at", "deleted_at")


class Entry:
    """One record's JSON, with the values that lists need.

    So most pages are served without parsing a record. Times are kept as text, because texts in the API's format sort in
    the same order as the times.
    """

    __slots__ = ("body", "created_at", "hidden_by", "is_inactive", "key", "number", "sort_key", "updated_at")

    def __init__(self, key: str, record: Any) -> None:
        fields: dict[str, Any] = cast("dict[str, Any]", record) if isinstance(record, dict) else {}
        self.key = key
        self.body = wire.serialise(record)
        self.created_at = _text(fields.get("created_at"))
        self.updated_at = _text(fields.get("updated_at"))
        self.hidden_by = tuple(field for field in _HIDING_FIELDS if fields.get(field))
        self.is_inactive = fields.get("active") is False
        self.number = _number(key)
        self.sort_key = (self.created_at or "", -1 if self.number is None else self.number, key)


_by_sort_key = attrgetter("sort_key")


def _by_creation(entry: Entry) -> str:
    return entry.created_at or ""


class ResourceTable:
    """The records of one resource of one account."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._entries: dict[str, Entry] = {}
        self._ordered: list[Entry] = []
        self._columns: dict[str, dict[str, Any]] = {}
        self._selections: dict[tuple[object, ...], list[Entry]] = {}

    def entries(self) -> list[Entry]:
        """Return all entries, even hidden entries, in the default order."""
        return list(self._ordered)

    def get(self, key: str) -> Entry | None:
        """Return the entry with this id, or None."""
        return self._entries.get(key)

    def fill(self, entries: Iterable[Entry]) -> None:
        """Add many entries. Of several entries with the same id, the last one is kept."""
        self._entries.update((entry.key, entry) for entry in entries)
        self._ordered = sorted(self._entries.values(), key=_by_sort_key)
        self._columns.clear()
        self._selections.clear()

    def put(self, entry: Entry) -> None:
        """Add an entry, or replace the entry with the same id."""
        self.delete(entry.key)
        self._entries[entry.key] = entry
        insort(self._ordered, entry, key=_by_sort_key)
        for field, column in self._columns.items():
            column[entry.key] = self._value(entry, field)

    def delete(self, key: str) -> None:
        """Remove the entry with this id, if there is one."""
        self._selections.clear()
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        del self._ordered[bisect_left(self._ordered, entry.sort_key, key=_by_sort_key)]
        for column in self._columns.values():
            column.pop(key, None)

    def select(self, query: Query) -> list[Entry]:
        """Return the entries of all pages of the query. The caller must not change the list.

        A few selections are cached until the next change.
        """
        if query.key not in self._selections:
            while len(self._selections) >= _KEPT_SELECTIONS:
                del self._selections[next(iter(self._selections))]
            self._selections[query.key] = self._sort(self._keep(self._ordered, query.filters), query)
        return self._selections[query.key]

    def page(self, query: Query, dice: random.Random | None, *, inactive: bool = False) -> tuple[list[Entry], int]:
        """Return one page, and the number of entries of all pages.

        `dice` shuffle entries with equal sort fields for each request, as `order by created_at limit offset` does.
        Practitioners who left are only in the list with `inactive`.
        """
        selected = self.select(query)
        if self._resource.name == "practitioners":
            selected = [entry for entry in selected if entry.is_inactive == inactive]
        first = min((query.page - 1) * query.per_page, len(selected))
        last = min(first + query.per_page, len(selected))
        if dice is None or any(sort_field.field == "id" for sort_field in query.sort):
            return selected[first:last], len(selected)
        readers = [self._reader(sort_field.field) for sort_field in query.sort]
        return _drawn(selected, first, last, lambda entry: [read(entry) for read in readers], dice), len(selected)

    def shows(self, entry: Entry, query: Query) -> bool:
        """Return whether the entry matches the query's filters."""
        return bool(self._keep([entry], query.filters))

    def _keep(self, entries: list[Entry], filters: tuple[Filter, ...]) -> list[Entry]:
        hiding = self._hiding(filters)
        if hiding:
            entries = [entry for entry in entries if not entry.hidden_by or hiding.isdisjoint(entry.hidden_by)]
        for condition in filters:
            if not condition.matches_any:
                entries = self._apply(entries, condition)
        return entries

    def _hiding(self, filters: tuple[Filter, ...]) -> set[str]:
        asked = {condition.field for condition in filters}
        hiding = {field for field in ("archived_at", "cancelled_at") if field not in asked}
        if self._resource.lifts_deleted not in asked:
            hiding.add("deleted_at")
        return hiding

    def _apply(self, entries: list[Entry], condition: Filter) -> list[Entry]:
        holds, value_of = condition.holds, self._reader(condition.field)
        return [entry for entry in entries if holds(value_of(entry))]

    def _reader(self, field: str) -> Callable[[Entry], Any]:
        if field in _DIRECT_FIELDS:
            return attrgetter(_DIRECT_FIELDS[field])
        column = self._column(field)
        return lambda entry: column[entry.key]

    def _sort(self, entries: list[Entry], query: Query) -> list[Entry]:
        if query.sort in _DEFAULT_ORDERS:
            return entries
        for sort_field in reversed(query.sort):
            if sort_field.field == "created_at":
                key = _by_sort_key if len(query.sort) == 1 else _by_creation
                entries = sorted(entries, key=key, reverse=sort_field.descending)
                continue
            value_of = self._reader(sort_field.field)
            present = [entry for entry in entries if value_of(entry) is not None]
            absent = [entry for entry in entries if value_of(entry) is None]
            present.sort(key=value_of, reverse=sort_field.descending)
            entries = [*present, *absent] if sort_field.descending else [*absent, *present]
        return entries

    def _column(self, field: str) -> dict[str, Any]:
        """Return the field's value of every entry, read on first use and then kept up to date."""
        if field not in self._columns:
            self._columns[field] = {entry.key: self._value(entry, field) for entry in self._ordered}
        return self._columns[field]

    def _value(self, entry: Entry, field: str) -> Any:
        record = wire.parse(entry.body)
        if not isinstance(record, dict):
            return None
        return field_value(cast("dict[str, Any]", record), field, self._resource.fields[field])


def _drawn(
    selected: list[Entry], first: int, last: int, tie: Callable[[Entry], list[Any]], dice: random.Random
) -> list[Entry]:
    page: list[Entry] = []
    while first < last:
        value = tie(selected[first])
        low, high = first, first + 1
        while low > 0 and tie(selected[low - 1]) == value:
            low -= 1
        while high < len(selected) and tie(selected[high]) == value:
            high += 1
        page += dice.sample(selected[low:high], min(high, last) - first)
        first = min(high, last)
    return page


def field_value(record: dict[str, Any], field: str, kind: FieldKind) -> Any:
    """Return the value of a record's filterable `field`, or None if it is not usable.

    Ids are numbers, and the ids of related objects come from links. Times and dates are text.
    """
    if kind is FieldKind.ARRAY:
        return _array(record, field)
    value = record.get(field, _related_id(record, field))
    if kind is FieldKind.BOOLEAN:
        return value if isinstance(value, bool) else None
    text = _text(value)
    return _number(text) if kind is FieldKind.NUMBER and text is not None else text


def _array(record: dict[str, Any], field: str) -> list[str] | None:
    values = record.get(field)
    if isinstance(values, list):
        return [str(value) for value in cast("list[Any]", values)]
    if field == "patient_ids":
        patient_id = _related_id(record, "patient_id")
        return None if patient_id is None else [patient_id]
    return None


def _related_id(record: dict[str, Any], field: str) -> str | None:
    # The appointment_id of an attendee is the id in its link to the booking.
    relation = "booking" if field == "appointment_id" else field.removesuffix("_id")
    try:
        return str(record[relation]["links"]["self"]).rsplit("/", 1)[-1]
    except (KeyError, TypeError):
        return None


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None


def _text(value: Any) -> str | None:
    # Cliniko sends an empty string where null is meant.
    return None if value is None or value == "" else str(value)
