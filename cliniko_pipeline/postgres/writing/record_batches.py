"""Batches of records, each written in one transaction together with the checkpoint of its crawl."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Self

from sqlalchemy.engine import Connection

from cliniko_pipeline.daemon_threads import DaemonThreads, wait_for
from cliniko_pipeline.errors import ClinikoPipelineError, DataError
from cliniko_pipeline.postgres.engine import Database, execute_pipelined
from cliniko_pipeline.postgres.tables import RECONCILED, Table
from cliniko_pipeline.postgres.writing import crawls
from cliniko_pipeline.postgres.writing.crawls import MissingCount, RejectedRecord
from cliniko_pipeline.postgres.writing.merge import RowExistsError, Written, raising_row_exists, stage

TOO_MANY_UNREADABLE = 10
"""A full crawl without stored records fails at a batch of this many unreadable records and no row."""


@dataclass(frozen=True)
class CrawlProgress:
    """The kind of a crawl, and its checkpoint after a batch.

    Attributes:
        is_full: whether the crawl reads all records; an incremental crawl reads changed records.
        reconciles: whether records that the crawl does not see are marked as deleted at its end.
        next_cursor: when the crawl began, by Cliniko's clock. The next incremental crawl starts a little earlier.
        next_page: the page at which a full crawl resumes.
        total_entries: the number of records in the list that a full crawl reads.
        is_partial: whether the crawl was skipped, because no table needs its records.
        max_missing_share: the largest share of missing records, 0 to 1, at which these are marked as deleted.
        refused_fields: the sort and filter fields that Cliniko refuses for this list.
    """

    is_full: bool
    reconciles: bool
    next_cursor: datetime | None = None
    next_page: int | None = None
    total_entries: int | None = None
    is_partial: bool = False
    max_missing_share: float = 1.0
    refused_fields: Sequence[str] = ()


@dataclass(frozen=True)
class RecordBatch:
    """Records of one resource that are written in one transaction.

    Attributes:
        resource: Cliniko's name of the resource, such as `group_appointments`.
        table: the table of the rows.
        rows: tuples in the order of `table.written`.
        rejected: records that were rejected since the previous batch.
        is_first: whether the crawl begins with this batch.
        is_last: whether the crawl is complete with this batch.
        crawl: the crawl's checkpoint after this batch; None for rows that belong to no crawl.
    """

    resource: str
    table: Table
    rows: Sequence[tuple[object, ...]]
    rejected: Sequence[RejectedRecord] = ()
    is_first: bool = False
    is_last: bool = False
    crawl: CrawlProgress | None = None


class BatchWriter:
    """A writer that writes each batch in the background while the caller reads the next one.

    For the first and the last batch of a crawl, `write` returns only after the commit. The end of the `with` block
    waits for the batch in the background.

    Args:
        on_written: called in the caller's thread with each batch and its result.
        require_lock: raises an error if the organization lock is lost (see Database.organization_lock).
    """

    def __init__(
        self,
        database: Database,
        organization_id: str,
        on_written: Callable[[RecordBatch, Written], object],
        require_lock: Callable[[], object],
    ) -> None:
        self._database = database
        self._organization_id = organization_id
        self._on_written = on_written
        self._require_lock = require_lock
        self._writing = threading.Lock()
        self._is_closed = False
        self._thread = DaemonThreads(1, "cliniko-writing")
        self._pending: tuple[RecordBatch, Future[Written]] | None = None
        self._resources_with_rows: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._finish_pending()
        except ClinikoPipelineError:
            if error is None:  # An error of the `with` block takes precedence.
                raise
        finally:
            self._thread.close()
            # After an interruption right after `submit`, `_pending` lacks the batch. The lock waits for the write.
            with self._writing:
                self._is_closed = True

    def write(self, batch: RecordBatch) -> None:
        """Write the batch; raise the errors of `write_batch` for this batch or the previous batch."""
        self._finish_pending()
        if batch.is_first or batch.is_last:
            self._on_written(batch, self._write(batch))
        else:
            self._pending = batch, self._thread.submit(lambda: self._write_in_background(batch))

    def _write_in_background(self, batch: RecordBatch) -> Written:
        with self._writing:
            if self._is_closed:
                raise RuntimeError("BatchWriter is closed")
            return self._write(batch)

    def _write(self, batch: RecordBatch) -> Written:
        # In a first crawl nearly all rows are new, so a faster insert is tried before the merge. The insert fails
        # only if a record is read twice, because records moved between pages.
        if _is_first_crawl(batch) and batch.resource not in self._resources_with_rows:
            try:
                return write_batch(self._database, self._organization_id, batch, self._require_lock, are_new=True)
            except RowExistsError:
                self._resources_with_rows.add(batch.resource)
        return write_batch(self._database, self._organization_id, batch, self._require_lock)

    def _finish_pending(self) -> None:
        if self._pending is None:
            return
        batch, future = self._pending
        try:
            written = wait_for(future)
        finally:
            if future.done():  # After an interrupted wait the batch stays pending, so that `__exit__` waits for it.
                self._pending = None
        self._on_written(batch, written)


def _is_first_crawl(batch: RecordBatch) -> bool:
    # Every full crawl of a RECONCILED resource reconciles, except the first one.
    crawl = batch.crawl
    return crawl is not None and crawl.is_full and not crawl.reconciles and batch.resource in RECONCILED


def write_batch(
    database: Database,
    organization_id: str,
    batch: RecordBatch,
    require_lock: Callable[[], object],
    *,
    are_new: bool = False,
) -> Written:
    """Write the batch in one transaction; return the counts, including records marked as deleted.

    Raises:
        RowExistsError: `are_new` is set and a row exists. Nothing was written.
        DataError: a full crawl has read only unreadable records so far, and nothing was written. Or a complete crawl
            has missed too many records; the batch was written, but no record was marked as deleted.
    """
    suspicious: MissingCount | None = None
    with database.organization(organization_id, is_resumable=not (batch.is_first or batch.is_last)) as connection:
        written = _write_rows(connection, batch, require_lock, are_new=are_new)
        if batch.crawl is not None and batch.is_last:
            missing = _count_missing(connection, batch.resource, batch.crawl)
            suspicious = missing if missing.share > batch.crawl.max_missing_share else None
            written += _complete(connection, batch.resource, batch.crawl, missing, suspicious)
    if suspicious is not None:
        raise DataError(
            f"{batch.resource}: {suspicious.missing} of {suspicious.known} records are no longer in Cliniko, more than"
            " CLINIKO_VANISHED_SHARE_LIMIT allows. Nothing was marked as deleted. If they are really deleted, run"
            f" `cliniko-pipeline sync {organization_id} --full --accept-deletions`."
        )
    return written


def _write_rows(
    connection: Connection, batch: RecordBatch, require_lock: Callable[[], object], *, are_new: bool
) -> Written:
    crawl = batch.crawl
    if crawl is not None and crawl.is_full and not batch.rows:
        _require_readable_records(connection, batch)
    if crawl is not None and batch.is_first:
        crawls.begin(connection, batch.resource, is_full=crawl.is_full, reconciles=crawl.reconciles)
    merge = [stage(connection, batch.table, batch.rows, are_new=are_new)] if batch.rows else []
    advance = [] if crawl is None else [_build_advance(batch, crawl)]
    # The lock is checked while this transaction is open. A server crash before the check has closed the lock's
    # connection, and a later crash closes this connection. So no batch is committed if a crash lost an earlier batch.
    with raising_row_exists() if are_new else nullcontext():
        first_rows = execute_pipelined(connection, merge + advance, after_sending=require_lock)
    written = Written(*first_rows[0]) if merge else Written()
    if crawl is not None:
        has_rejected = bool(batch.rejected or (first_rows[-1] and first_rows[-1][0]))
        _save_ids(connection, batch, crawl, has_rejected=has_rejected)
    return written


def _require_readable_records(connection: Connection, batch: RecordBatch) -> None:
    unreadable = [record for record in batch.rejected if not record.is_unanswered]
    if len(unreadable) < TOO_MANY_UNREADABLE:
        return
    state = crawls.read_states(connection).get(batch.resource)
    if state is None or state.records == 0:
        raise DataError(
            f"{batch.resource}: all of the first {len(unreadable)} records were rejected ({unreadable[0].reason}), and"
            " nothing was written. Cliniko's responses seem to have changed: look for a new version of the pipeline."
        )


def _build_advance(batch: RecordBatch, crawl: CrawlProgress) -> crawls.BoundStatement:
    return crawls.build_advance(
        batch.resource,
        records=len(batch.rows),
        next_cursor=crawl.next_cursor,
        next_page=crawl.next_page,
        total_entries=crawl.total_entries,
        refused_fields=crawl.refused_fields,
    )


def _save_ids(connection: Connection, batch: RecordBatch, crawl: CrawlProgress, *, has_rejected: bool) -> None:
    if not (has_rejected or crawl.reconciles):
        return
    accepted = [str(row[batch.table.written.index("id")]) for row in batch.rows]
    if has_rejected:
        crawls.save_rejected(connection, batch.resource, accepted=accepted, rejected=batch.rejected)
    if crawl.reconciles:
        rejected = [record.id for record in batch.rejected if record.id is not None]
        crawls.save_crawled_ids(connection, batch.resource, accepted + rejected)


def _count_missing(connection: Connection, resource: str, crawl: CrawlProgress) -> MissingCount:
    if not crawl.reconciles:
        return MissingCount(known=0, missing=0)
    return crawls.count_missing(connection, resource, crawl.next_cursor)


def _complete(
    connection: Connection, resource: str, crawl: CrawlProgress, missing: MissingCount, suspicious: MissingCount | None
) -> Written:
    deleted = 0
    if missing.missing and suspicious is None:
        deleted = crawls.mark_missing_deleted(connection, resource, crawl.next_cursor)
    crawls.complete(
        connection,
        resource,
        next_cursor=crawl.next_cursor,
        is_partial=crawl.is_partial,
        doubtful_deletions=suspicious.missing if suspicious else 0,
    )
    return Written(deleted=deleted)
