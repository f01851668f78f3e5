"""Writes a batch of records and, in the same transaction, how far the reading of their resource has come."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from types import TracebackType
from typing import Self

from sqlalchemy.engine import Connection

from cliniko_pipeline.cliniko.records import UNANSWERED
from cliniko_pipeline.daemon_threads import DaemonThreads, wait_for
from cliniko_pipeline.errors import ClinikoPipelineError, DataError
from cliniko_pipeline.orchestration.assets.values import CrawlProgress, RecordBatch
from cliniko_pipeline.postgres.engine import Database, Sent, at_once
from cliniko_pipeline.postgres.tables import RECONCILED
from cliniko_pipeline.postgres.writing import crawls
from cliniko_pipeline.postgres.writing.crawls import Vanished
from cliniko_pipeline.postgres.writing.merge import RowsAreThereError, Written, refusing_rows_that_are_there, staged

REJECTED_AT_ONCE = 10
"""So many records, all of them rejected, at the beginning of a full reading are no bad luck with single records."""


class WritingBehind:
    """Writes batches in the order they are given, each while the next one is being read.

    The first and the last of a reading are written when `write` returns: whoever reads on may look at what they left.
    `on_written` is called with every batch that was written, by the thread that gives them. Use as a context manager;
    at its end, whatever happened, nothing is being written any more. `require_turn` raises where the organization may
    be written by others by now (see Database.turn).
    """

    def __init__(
        self,
        database: Database,
        organization_id: str,
        on_written: Callable[[RecordBatch, Written], object],
        require_turn: Callable[[], object],
    ) -> None:
        self._database = database
        self._organization_id = organization_id
        self._on_written = on_written
        self._require_turn = require_turn
        self._writing = threading.Lock()
        self._is_over = False
        self._thread = DaemonThreads(1, "cliniko-writing")
        self._under_way: tuple[RecordBatch, Future[Written]] | None = None
        self._not_new: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._wait()
        except ClinikoPipelineError:
            if error is None:
                raise
            # What went wrong first says more.
        finally:
            self._thread.close()
            # An interruption may have come when a batch had been handed over, and before that was noted.
            with self._writing:
                self._is_over = True

    def write(self, batch: RecordBatch) -> None:
        """Raises what `write_batch` raises, of this batch or of the one before."""
        self._wait()
        if batch.is_first or batch.is_last:
            self._on_written(batch, self._write(batch))
        else:
            future = self._thread.submit(lambda: self._write_behind(batch))
            self._under_way = batch, future

    def _write_behind(self, batch: RecordBatch) -> Written:
        with self._writing:
            if self._is_over:
                raise RuntimeError("Nothing is written any more")
            return self._write(batch)

    def _write(self, batch: RecordBatch) -> Written:
        # A first reading hardly ever finds a record there: one that it reads again, since others vanished meanwhile.
        if _is_of_first_reading(batch) and batch.resource not in self._not_new:
            try:
                return write_batch(self._database, self._organization_id, batch, self._require_turn, are_new=True)
            except RowsAreThereError:
                self._not_new.add(batch.resource)
        return write_batch(self._database, self._organization_id, batch, self._require_turn)

    def _wait(self) -> None:
        if self._under_way is None:
            return
        batch, future = self._under_way
        try:
            written = wait_for(future)
        finally:
            if future.done():  # or it was the wait that was interrupted
                self._under_way = None
        self._on_written(batch, written)


def _is_of_first_reading(batch: RecordBatch) -> bool:
    # A later full one reconciles, where that is done at all.
    crawl = batch.crawl
    return crawl is not None and crawl.is_full and not crawl.reconciles and batch.resource in RECONCILED


def write_batch(
    database: Database,
    organization_id: str,
    batch: RecordBatch,
    require_turn: Callable[[], object],
    *,
    are_new: bool = False,
) -> Written:
    """Writes the batch in one transaction, if it is still the caller's turn.

    Tells what became of the rows, those included that were marked as deleted.

    Raises RowsAreThereError where the rows are said to be new and one is not: then nothing was written. Raises
    DataError where a full reading begins with nothing but records that cannot be understood, and where too many records
    are missing at its end to be believed: then nothing was marked, but all that was read is written.
    """
    doubtful: Vanished | None = None
    with database.organization(organization_id, is_resumable=not (batch.is_first or batch.is_last)) as connection:
        written = _write_rows(connection, batch, require_turn, are_new=are_new)
        if batch.crawl is not None and batch.is_last:
            vanished = _missing(connection, batch.resource, batch.crawl)
            doubtful = vanished if vanished.share > batch.crawl.believed_share else None
            written += _reconcile(connection, batch.resource, batch.crawl, vanished, doubtful)
    if doubtful is not None:
        # Only now: the reading itself was whole, and what it brought is right.
        raise DataError(
            f"{batch.resource}: {doubtful.vanished} of {doubtful.known} records are no longer in Cliniko, more than is"
            " believed (CLINIKO_VANISHED_SHARE_LIMIT). Nothing was marked as deleted; if it is true, run"
            f" `cliniko-pipeline sync {organization_id} --full --accept-deletions`."
        )
    return written


def _write_rows(
    connection: Connection, batch: RecordBatch, require_turn: Callable[[], object], *, are_new: bool
) -> Written:
    """Writes the rows and how far the reading has come, with as few waits as can be."""
    crawl = batch.crawl
    if crawl is not None and crawl.is_full and not batch.rows:
        _require_sense(connection, batch)
    if crawl is not None and batch.is_first:
        crawls.begin(connection, batch.resource, is_full=crawl.is_full, reconciles=crawl.reconciles)
    merging = [staged(connection, batch.table, batch.rows, are_new=are_new)] if batch.rows else []
    advancing = [] if crawl is None else [_advancing(batch, crawl)]
    # On a connection that is open: where the server has crashed since, one of the two is lost.
    with refusing_rows_that_are_there() if are_new else nullcontext():
        found = at_once(connection, merging + advancing, meanwhile=require_turn)
    written = Written(*found[0]) if merging else Written()
    if crawl is not None:
        _note_ids(connection, batch, crawl, has_set_aside=bool(found[-1] and found[-1][0]))
    return written


def _require_sense(connection: Connection, batch: RecordBatch) -> None:
    rejected = [each for each in batch.rejected if not each.reason.startswith(UNANSWERED)]
    if len(rejected) < REJECTED_AT_ONCE:
        return
    state = crawls.states(connection).get(batch.resource)
    if state is None or state.records == 0:
        raise DataError(
            f"{batch.resource}: not one of {len(rejected)} records could be understood"
            f" ({rejected[0].reason}): Cliniko's answers seem to have changed. Nothing was written of them."
        )


def _advancing(batch: RecordBatch, crawl: CrawlProgress) -> Sent:
    following = crawl.following
    return crawls.advancing(
        batch.resource,
        records=len(batch.rows),
        horizon=crawl.horizon,
        next_page=following.page if following else None,
        total_entries=following.total_entries if following else None,
        refused=crawl.refused,
    )


def _note_ids(connection: Connection, batch: RecordBatch, crawl: CrawlProgress, *, has_set_aside: bool) -> None:
    if not (has_set_aside or batch.rejected or crawl.reconciles):
        return
    understood = [str(row[batch.table.written.index("id")]) for row in batch.rows]
    if has_set_aside or batch.rejected:
        crawls.set_aside(connection, batch.resource, understood=understood, rejected=batch.rejected)
    if crawl.reconciles:
        rejected = [record.id for record in batch.rejected if record.id is not None]
        crawls.remember_ids(connection, batch.resource, understood + rejected)


def _missing(connection: Connection, resource: str, crawl: CrawlProgress) -> Vanished:
    if not crawl.reconciles:
        return Vanished(known=0, vanished=0)
    return crawls.vanished(connection, resource, crawl.horizon)


def _reconcile(
    connection: Connection, resource: str, crawl: CrawlProgress, vanished: Vanished, doubtful: Vanished | None
) -> Written:
    believed = vanished.vanished and doubtful is None
    deleted = crawls.mark_vanished(connection, resource, crawl.horizon) if believed else 0
    crawls.complete(
        connection,
        resource,
        horizon=crawl.horizon,
        is_partial=crawl.is_partial,
        doubtful_deletions=doubtful.vanished if doubtful else 0,
    )
    return Written(deleted=deleted)
