"""One clinic's Cliniko account, with its API key, its rights, and its mutable records."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from threading import RLock
from typing import Any, cast

from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.sandbox import wire
from cliniko_pipeline.sandbox.accounts.tables import Entry, ResourceTable
from cliniko_pipeline.sandbox.queries import Query
from cliniko_pipeline.sandbox.resources import (
    BOOKING_RESOURCES,
    RESOURCES,
    STORED_RESOURCES,
    UNLISTED_RESOURCES,
    Resource,
)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list, with the records' JSON (unbound links) and the list's size."""

    bodies: list[bytes]
    ids: list[str]
    total_entries: int


class Account:
    """A simulated account. Thread-safe, also while a server serves it.

    `api_key` is the key as Cliniko issued it. Only the key of an old account has no shard suffix. The key's user may
    not read `forbidden_resources` (403). `revoked` makes the key unknown (401). `has_inactive_list` says whether
    `/practitioners/inactive` exists. `settings` is the response of `/settings`, None for a 404.
    """

    def __init__(self, name: str, shard: str, api_key: str) -> None:
        self.name = name
        self.shard = shard
        self.api_key = api_key
        self.forbidden_resources: set[str] = set()
        self.revoked = False
        self.has_inactive_list = True
        self.settings: dict[str, Any] | None = {"account": {"name": name}}
        self._lock = RLock()
        self._tables = {stored: ResourceTable(_resource(stored)) for stored in STORED_RESOURCES}
        self._bookings = ResourceTable(RESOURCES["bookings"])
        self._without_id = 0

    def __repr__(self) -> str:
        return f"Account(name={self.name!r}, shard={self.shard!r})"

    @classmethod
    def from_records(cls, name: str, shard: str, api_key: str, records: Mapping[str, Iterable[Any]]) -> "Account":
        """Return an account with the given records by resource name.

        A record is served exactly as it is, even if it is incomplete or malformed, except that values beginning with
        `{base}/` become links to the serving host. Each iterable is read once, so it may be a generator. As in reality,
        an individual and a group appointment with the same id are a single booking. Raise ArgumentError for a resource
        that the sandbox does not have.
        """
        account = cls(name, shard, api_key)
        for resource, rows in records.items():
            account.fill(resource, rows)
        return account

    @property
    def bare_key(self) -> str:
        """The API key without the shard suffix."""
        return self.api_key.removesuffix(f"-{self.shard}")

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """A copy of all records with unbound links, by resource name and id."""
        with self._lock:
            return {
                name: {entry.key: wire.parse(entry.body) for entry in table.entries()}
                for name, table in self._tables.items()
            }

    def fill(self, resource: str, records: Iterable[Any]) -> None:
        """Add many records at once, which is much faster than `put` in a loop."""
        table = self._table(resource)
        entries = [self._entry(record) for record in records]
        with self._lock:
            table.fill(entries)
            if resource in BOOKING_RESOURCES:
                self._bookings.fill(entries)

    def put(self, resource: str, record: Any) -> None:
        """Add the record, or replace the record with the same id."""
        table = self._table(resource)
        entry = self._entry(record)
        with self._lock:
            table.put(entry)
            if resource in BOOKING_RESOURCES:
                self._bookings.put(entry)

    def delete(self, resource: str, record_id: str | int) -> None:
        """Remove the record for good, as a hard deletion does, if there is such a record."""
        table = self._table(resource)
        with self._lock:
            table.delete(str(record_id))
            if resource in BOOKING_RESOURCES:
                self._bookings.delete(str(record_id))

    def get(self, resource: str, record_id: str | int) -> dict[str, Any] | None:
        """Return a copy of a record with unbound links, or None."""
        with self._lock:
            entry = self._table(resource).get(str(record_id))
        return None if entry is None else cast("dict[str, Any]", wire.parse(entry.body))

    def wire_records(self, resource: str, base_url: str) -> list[dict[str, Any]]:
        """Return all records, even hidden records, in default order, with links to `base_url`."""
        with self._lock:
            entries = self._table(resource).entries()
        return [wire.parse(entry.body, base_url) for entry in entries]

    def page(self, resource: str, query: Query, dice: random.Random | None = None, *, inactive: bool = False) -> Page:
        """Return a page; `dice` shuffle ties, and `inactive` selects former practitioners."""
        with self._lock:
            entries, total = self._table(resource).page(query, dice, inactive=inactive)
        return Page([entry.body for entry in entries], [entry.key for entry in entries], total)

    def body(self, resource: str, record_id: str, query: Query) -> bytes | None:
        """Return one record's JSON with unbound links, or None if it is absent or hidden."""
        with self._lock:
            table = self._table(resource)
            entry = table.get(record_id)
            return entry.body if entry is not None and table.shows(entry, query) else None

    def _table(self, resource: str) -> ResourceTable:
        table = self._bookings if resource == "bookings" else self._tables.get(resource)
        if table is None:
            known = ", ".join(sorted(STORED_RESOURCES))
            raise ArgumentError(f"The sandbox has no resource of this name; it has {known}.")
        return table

    def _entry(self, record: Any) -> Entry:
        key = cast("dict[str, Any]", record).get("id") if isinstance(record, dict) else None
        if key is None:
            with self._lock:
                self._without_id += 1
                key = f"without id {self._without_id}"
        return Entry(str(key), record)


def _resource(name: str) -> Resource:
    return Resource(name, {}) if name in UNLISTED_RESOURCES else RESOURCES[name]
