"""The crawls of a Cliniko account, as batches of rows for the two extracting assets."""

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
from cliniko_pipeline.cliniko.records import UNANSWERED, RecordT, Resource
from cliniko_pipeline.errors import ClinikoPipelineError, RequestRejectedError
from cliniko_pipeline.orchestration.assets.values import RecordStream
from cliniko_pipeline.orchestration.plans.crawls import CrawlPlan, plan_crawl
from cliniko_pipeline.orchestration.resources import ClinikoResource
from cliniko_pipeline.postgres.tables import RECONCILED, Table
from cliniko_pipeline.postgres.writing import crawls
from cliniko_pipeline.postgres.writing.crawls import RejectedRecord
from cliniko_pipeline.postgres.writing.record_batches import CrawlProgress, RecordBatch
from cliniko_pipeline.postgres.writing.sync_journal import RequestCost
from cliniko_pipeline.runtime import Runtime

COMMIT_INTERVAL_SECONDS = 5.0
"""The time between two commits. A full crawl that was killed reads the pages since the last commit (about 17) again."""
MAX_PAGES_PER_BATCH = 200
"""The largest number of pages in one transaction. Their 20,000 records must fit in memory."""


class ExtractionConfig(dg.Config):
    """The run configuration of the two extracting assets."""

    full: bool = Field(
        default=False,
        description="Read every record. Stored records that Cliniko no longer has are marked as deleted.",
    )
    accept_deletions: bool = Field(
        default=False, description="Mark missing records as deleted even if there are suspiciously many."
    )


@dataclass(frozen=True)
class Source(Generic[RecordT]):
    """A resource and its table. `row` converts a record to values of the columns `written`."""

    resource: Resource[RecordT]
    table: Table
    row: Callable[[RecordT], tuple[object, ...]]


def source(resource: Resource[RecordT], table: Table) -> Source[RecordT]:
    """Return a source for records whose fields are named like the table's columns."""
    return Source(resource, table, attrgetter(*table.written))


@dataclass
class AccountReading:
    """The crawls of one account in one run, with the options of `ExtractionConfig`."""

    runtime: Runtime
    cliniko: ClinikoResource
    organization_id: str
    full: bool
    accept_deletions: bool
    log: "dg.DagsterLogManager"
    _client: ClinikoClient | None = field(default=None, repr=False)

    def stream(self, sources: Sequence[Source[Any]], batches: Callable[[], Iterator[RecordBatch]]) -> RecordStream:
        """Return an asset's value. Iterating the value opens the client, then calls `batches`."""

        def opened() -> Iterator[RecordBatch]:
            with self._opened():
                if self.full:
                    self._require_full(sources)
                yield from batches()

        return RecordStream(opened, self._cost)

    def plan(self, source: Source[Any]) -> CrawlPlan:
        """Plan the source's next crawl from its stored state."""
        with self.runtime.database.organization(self.organization_id) as connection:
            state = crawls.read_states(connection).get(source.resource.name)
        return plan_crawl(state, full=self.full)

    def read(self, source: Source[RecordT]) -> Iterator[RecordBatch]:
        """Yield the source's batches.

        After a resumed crawl, also crawl incrementally: records may have changed since the interrupted crawl read them.
        """
        plan = self.plan(source)
        yield from self._read(source, plan)
        if plan.position is not None:
            yield from self._read(source, self.plan(source))

    def read_full(self, source: Source[RecordT], reason: str) -> Iterator[RecordBatch]:
        """Yield the batches of a full crawl that marks no records as deleted."""
        refused = self.plan(source).refused
        reason = f"full crawl, because {reason}"
        yield from self._read(source, CrawlPlan(is_full=True, reconciles=False, reason=reason, refused=refused))

    def read_beside(self, resource: Resource[RecordT], source: Source[RecordT]) -> Iterator[RecordBatch]:
        """Yield batches for the source's table from another list, which some accounts lack."""
        if self._client is None:
            raise RuntimeError("The client is not open")
        try:
            for page in self._client.crawl(resource):
                yield RecordBatch(source.resource.name, source.table, list(map(source.row, page.records)))
        except RequestRejectedError as error:
            self.log.warning("The sync continues without the list %s: %s", resource.path or resource.name, error)

    def leave_out(self, source: Source[Any], next_cursor: datetime | None, reason: str) -> Iterator[RecordBatch]:
        """Yield an empty batch, which records the crawl as complete. Send no request."""
        self.log.info("%s: not read, because %s", source.resource.name, reason)
        crawl = CrawlProgress(is_full=True, reconciles=False, next_cursor=next_cursor, is_partial=True)
        yield RecordBatch(source.resource.name, source.table, (), is_first=True, is_last=True, crawl=crawl)

    def _require_full(self, sources: Sequence[Source[Any]]) -> None:
        """Store that the next crawl of each source must be full, in case this sync ends early."""
        with self.runtime.database.organization(self.organization_id) as connection:
            for source in sources:
                crawls.require_full(connection, source.resource.name, "the last full sync ended too early")

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
            raise RuntimeError("The client is not open")
        name, refusals = source.resource.name, self._client.refusals
        refusals.remember(name, plan.refused)
        self.log.info("%s: %s", name, plan.reason)
        begun = CrawlProgress(
            is_full=plan.is_full,
            reconciles=plan.reconciles and name in RECONCILED,
            next_cursor=plan.position.started_at if plan.position else None,
            next_page=plan.position.page if plan.position else None,
            total_entries=plan.position.total_entries if plan.position else None,
            max_missing_share=1.0 if self.accept_deletions else self.runtime.settings.vanished_share_limit,
            refused_fields=plan.refused,
        )
        pages = self._client.crawl(source.resource, changed_since=plan.changed_since, checkpoint=plan.position)
        yield from _batched(source, begun, pages, refusals, self.runtime.elapsed)
        for refused in refusals.of(name):
            self.log.warning("%s", consequence(name, refused))


def _batched(
    source: Source[RecordT],
    begun: CrawlProgress,
    pages: Iterator[Page[RecordT]],
    refusals: Refusals,
    elapsed: Callable[[], float],
) -> Iterator[RecordBatch]:
    """Join pages into batches. Yield a batch when it is full or after COMMIT_INTERVAL_SECONDS.

    A new crawl starts with an empty batch. So the beginning is recorded even if the first request fails.
    If a later request fails, the pages that were read before are still written.
    """
    name, table = source.resource.name, source.table
    if begun.next_page is None:
        yield RecordBatch(name, table, (), is_first=True, crawl=begun)
    rows: list[tuple[object, ...]] = []
    rejected: list[RejectedRecord] = []
    held, is_last, progress = 0, False, begun
    committed_at = elapsed()

    def batch(*, is_last: bool) -> RecordBatch:
        return RecordBatch(name, table, rows, rejected, is_last=is_last, crawl=progress)

    try:
        for page in pages:
            rows.extend(map(source.row, page.records))
            rejected.extend(
                RejectedRecord(record.id, record.reason, record.reason.startswith(UNANSWERED))
                for record in page.rejected
            )
            held += 1
            is_last = page.checkpoint is None
            checkpoint = page.checkpoint if begun.is_full else None
            progress = replace(
                begun,
                next_cursor=page.started_at,
                next_page=checkpoint.page if checkpoint else None,
                total_entries=checkpoint.total_entries if checkpoint else None,
                refused_fields=refusals.of(name),
            )
            if is_last or held == MAX_PAGES_PER_BATCH or elapsed() - committed_at >= COMMIT_INTERVAL_SECONDS:
                yield batch(is_last=is_last)
                rows, rejected, held, committed_at = [], [], 0, elapsed()
    except ClinikoPipelineError:
        if held:
            yield batch(is_last=False)
        raise
    if not is_last:
        yield batch(is_last=True)
