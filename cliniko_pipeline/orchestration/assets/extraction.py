"""Reading an account from Cliniko, in batches, for the extracting assets."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from operator import attrgetter
from typing import Any, Generic

import dagster as dg
from pydantic import Field

from cliniko_pipeline.cliniko.client import ClinikoClient
from cliniko_pipeline.cliniko.crawling.crawl import Page
from cliniko_pipeline.cliniko.crawling.refusals import Refusals, consequence
from cliniko_pipeline.cliniko.records import RecordT, Resource
from cliniko_pipeline.errors import RequestRejectedError
from cliniko_pipeline.orchestration.assets.values import CrawlProgress, RecordBatch, RecordStream, RequestCost
from cliniko_pipeline.orchestration.plans.crawls import CrawlPlan, plan_crawl
from cliniko_pipeline.orchestration.resources import ClinikoResource
from cliniko_pipeline.postgres.tables import RECONCILED, Table
from cliniko_pipeline.postgres.writing import crawls
from cliniko_pipeline.postgres.writing.crawls import RejectedRecord
from cliniko_pipeline.runtime import Runtime

MOST_PAGES_IN_A_BATCH = 20
"""So many pages at most are written in one transaction: 2,000 records, a few hundred kilobytes."""
READ_FOR_EACH_PAGE_IN_A_BATCH = 40
"""A batch has a page more for each so many pages read: a reading that breaks off loses a small part of what it has
read, the batch that it gathers and the one that is being written."""


class ExtractionConfig(dg.Config):
    """What a launch may say."""

    full: bool = Field(
        default=False,
        description="Read everything from the beginning, and mark what Cliniko no longer has as deleted.",
    )
    accept_deletions: bool = Field(
        default=False, description="Believe it, too, when a suspicious share of the records is gone."
    )


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
class AccountReading:
    """One reading of an account, as it was launched (see ExtractionConfig)."""

    runtime: Runtime
    cliniko: ClinikoResource
    organization_id: str
    full: bool
    accept_deletions: bool
    log: "dg.DagsterLogManager"
    _client: ClinikoClient | None = field(default=None, repr=False)

    def stream(self, sources: Sequence[Source[Any]], batches: Callable[[], Iterator[RecordBatch]]) -> RecordStream:
        """The value an asset returns, made of these sources; `batches` is called when the client is open."""

        def opened() -> Iterator[RecordBatch]:
            with self._opened():
                if self.full:
                    self._require_full(sources)
                yield from batches()

        return RecordStream(opened, self._cost)

    def plan(self, source: Source[Any]) -> CrawlPlan:
        """How the source is to be read, as things stand."""
        with self.runtime.database.organization(self.organization_id) as connection:
            state = crawls.states(connection).get(source.resource.name)
        return plan_crawl(state, full=self.full)

    def read(self, source: Source[RecordT]) -> Iterator[RecordBatch]:
        """The source's batches. A reading that went on where one broke off is brought up to date: what it has from
        the beginning may have changed since.
        """
        plan = self.plan(source)
        yield from self._read(source, plan)
        if plan.position is not None:
            yield from self._read(source, self.plan(source))

    def read_whole(self, source: Source[RecordT], reason: str) -> Iterator[RecordBatch]:
        """Its batches from the beginning, whatever is stored."""
        refused = self.plan(source).refused
        reason = f"read whole: {reason}"
        yield from self._read(source, CrawlPlan(is_full=True, reconciles=False, reason=reason, refused=refused))

    def read_beside(self, resource: Resource[RecordT], source: Source[RecordT]) -> Iterator[RecordBatch]:
        """Yield the batches of another list of the source's records, which an account may not have."""
        if self._client is None:
            raise RuntimeError("AccountReading is used before it is opened")
        try:
            for page in self._client.crawl(resource):
                yield RecordBatch(source.resource.name, source.table, list(map(source.row, page.records)))
        except RequestRejectedError as error:
            self.log.warning("%s is not read, the sync goes on: %s", resource.path or resource.name, error)

    def leave_out(self, source: Source[Any], horizon: datetime | None, reason: str) -> Iterator[RecordBatch]:
        """The batch of a reading that needs no request: up to the horizon there can be nothing in it that counts."""
        self.log.info("%s: not read, %s", source.resource.name, reason)
        crawl = CrawlProgress(is_full=True, reconciles=False, horizon=horizon, is_partial=True)
        yield RecordBatch(source.resource.name, source.table, (), is_first=True, is_last=True, crawl=crawl)

    def _require_full(self, sources: Sequence[Source[Any]]) -> None:
        """What a full sync that breaks off has not come to, the next one reads in full."""
        with self.runtime.database.organization(self.organization_id) as connection:
            for each in sources:
                crawls.require_full(connection, each.resource.name, "a full sync broke off before it")

    @contextmanager
    def _opened(self) -> Generator[None, None, None]:
        with self.cliniko.client(self.organization_id, self.log) as self._client:
            yield

    def _cost(self) -> RequestCost:
        if self._client is None:
            return RequestCost()
        spent, clock = self._client.statistics, self._client.clock_difference
        return RequestCost(spent.requests, spent.retries, spent.rate_limited, spent.seconds_waited, clock)

    def _read(self, source: Source[RecordT], plan: CrawlPlan) -> Iterator[RecordBatch]:
        if self._client is None:
            raise RuntimeError("AccountReading is used before it is opened")
        name, refusals = source.resource.name, self._client.refusals
        refusals.remember(name, plan.refused)
        self.log.info("%s: %s", name, plan.reason)
        begun = CrawlProgress(
            is_full=plan.is_full,
            reconciles=plan.reconciles and name in RECONCILED,
            horizon=plan.position.started_at if plan.position else None,
            following=plan.position,
            believed_share=1.0 if self.accept_deletions else self.runtime.settings.vanished_share_limit,
            refused=plan.refused,
        )
        pages = self._client.crawl(source.resource, changed_since=plan.changed_since, checkpoint=plan.position)
        yield from _batched(source, begun, pages, refusals)
        for refused in refusals.of(name):
            self.log.warning("%s", consequence(name, refused))


def _batched(
    source: Source[RecordT], begun: CrawlProgress, pages: Iterator[Page[RecordT]], refusals: Refusals
) -> Iterator[RecordBatch]:
    """Joins pages into batches, each given out as soon as it is full: a reading that breaks off loses none it has read.

    An empty batch goes first, before anything is requested: a reading that fails on its first page has begun, too. One
    that goes on where another broke off does not begin again.
    """
    name, table = source.resource.name, source.table
    if begun.following is None:
        yield RecordBatch(name, table, (), is_first=True, crawl=begun)
    rows: list[tuple[object, ...]] = []
    rejected: list[RejectedRecord] = []
    held, is_last, progress = 0, False, begun
    for read, page in enumerate(pages, start=1):
        rows.extend(map(source.row, page.records))
        rejected.extend(RejectedRecord(record.id, record.reason) for record in page.rejected)
        held += 1
        is_last = page.checkpoint is None
        following, refused = page.checkpoint if begun.is_full else None, refusals.of(name)
        progress = replace(begun, horizon=page.started_at, following=following, refused=refused)
        if is_last or held >= min(MOST_PAGES_IN_A_BATCH, read // READ_FOR_EACH_PAGE_IN_A_BATCH):
            yield RecordBatch(name, table, rows, rejected, is_last=is_last, crawl=progress)
            rows, rejected, held = [], [], 0
    if not is_last:
        yield RecordBatch(name, table, rows, rejected, is_last=True, crawl=progress)
