"""Reading an account from Cliniko, in batches, for the extracting assets."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Generic

import dagster as dg

from cliniko_pipeline.cliniko.client import ClinikoClient
from cliniko_pipeline.cliniko.pagination import Page
from cliniko_pipeline.cliniko.records import RecordT, Resource
from cliniko_pipeline.orchestration.resources import ClinikoResource
from cliniko_pipeline.orchestration.values import RecordBatch, RecordStream, RequestCost
from cliniko_pipeline.postgres.crawls import RejectedRecord
from cliniko_pipeline.postgres.tables import Table

PAGES_IN_A_BATCH = 20
"""So many pages are written in one transaction: 2,000 records, a few hundred kilobytes."""


@dataclass(frozen=True)
class Source(Generic[RecordT]):
    """A resource, the table it fills, and the row a record makes there (in the order of `table.written`)."""

    resource: Resource[RecordT]
    table: Table
    row: Callable[[RecordT], tuple[object, ...]]


def source(resource: Resource[RecordT], table: Table) -> Source[RecordT]:
    """A source whose records have the table's columns as their fields."""
    return Source(resource, table, attrgetter(*table.written))


@dataclass
class Reading:
    """One reading of an account: opens the client when iterated, and knows afterwards what that took.

    `skip` may say, when its turn has come, that a source need not be read.
    """

    cliniko: ClinikoResource
    organization_id: str
    log: "dg.DagsterLogManager"
    sources: Sequence[Source[Any]]
    skip: Callable[[str], bool] = lambda _resource: False
    _client: ClinikoClient | None = field(default=None, repr=False)

    def stream(self) -> RecordStream:
        """The reading as the value an asset returns."""
        return RecordStream(self._batches, self._cost)

    def _batches(self) -> Iterator[RecordBatch]:
        with ExitStack() as stack:
            self._client = stack.enter_context(self.cliniko.client(self.organization_id, self.log))
            for each in self.sources:
                name = each.resource.name
                if self.skip(name):
                    self.log.info("%s: not read, nothing in it can count", name)
                    yield RecordBatch(name, each.table, (), is_first=True, is_last=True)
                    continue
                yield from _batched(each, self._client.crawl(each.resource))

    def _cost(self) -> RequestCost:
        if self._client is None:
            return RequestCost()
        spent = self._client.statistics
        return RequestCost(spent.requests, spent.retries, spent.rate_limited, spent.seconds_waited)


def _batched(source: Source[RecordT], pages: Iterator[Page[RecordT]]) -> Iterator[RecordBatch]:
    """Joins pages into batches, one page behind: only the page after the last tells that it was the last.

    An empty batch goes first, before anything is requested: a reading that fails on its first page has begun, too.
    """
    name, table = source.resource.name, source.table
    yield RecordBatch(name, table, (), is_first=True)
    rows: list[tuple[object, ...]] = []
    rejected: list[RejectedRecord] = []
    held = 0
    for page in pages:
        if held == PAGES_IN_A_BATCH:
            yield RecordBatch(name, table, rows, rejected)
            rows, rejected, held = [], [], 0
        rows.extend(map(source.row, page.records))
        rejected.extend(RejectedRecord(record.id, record.reason) for record in page.rejected)
        held += 1
    yield RecordBatch(name, table, rows, rejected, is_last=True)
