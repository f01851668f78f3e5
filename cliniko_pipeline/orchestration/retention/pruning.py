"""The prune: it deletes old runs, events and history in small transactions, or counts what it would delete.

A killed prune loses nothing but its progress. It deletes only rows of ended runs, so syncs may run beside it.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import dagster as dg
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from cliniko_pipeline.orchestration.retention.dagster_tables import DagsterTables, dagster_tables
from cliniko_pipeline.postgres.operator_tables import organizations, retention
from cliniko_pipeline.postgres.operator_tables.retention import OldRows
from cliniko_pipeline.postgres.server.driver_errors import translated
from cliniko_pipeline.runtime import Runtime

RECENT = timedelta(days=2)
"""Most checks have a result within this time, because full syncs run every night."""


@dataclass(frozen=True)
class Pruned:
    """The old rows of one kind. `days` is how long they are kept, and `rows` is how many of them were deleted."""

    kind: str
    days: int
    rows: int


@dataclass(frozen=True)
class Sizes:
    """Bytes of the growing tables with their indexes. `dagster` is None if Dagster stores runs elsewhere."""

    dagster: int | None
    pipeline: int


OnProgress = Callable[[Pruned], None]
"""Called after each transaction, with the rows so far."""


@dataclass(frozen=True)
class _Kind:
    """A kind of old rows. `batches` deletes or counts them in batches, and yields the number of rows of each."""

    name: str
    days: int
    batches: Callable[[datetime], Iterator[int]]


class Prune:
    """One prune of an instance and of the pipeline's history, by the settings' times. `now` may be set by tests."""

    def __init__(
        self, runtime: Runtime, instance: dg.DagsterInstance, *, is_dry: bool = False, now: datetime | None = None
    ) -> None:
        self._runtime = runtime
        self._database = runtime.database
        self._is_dry = is_dry
        self._now = runtime.now() if now is None else now
        self._dagster = dagster_tables(instance)

    def run(self, on_progress: OnProgress = lambda _: None) -> list[Pruned]:
        """Delete, or count, all old rows; return their numbers by kind."""
        with self._errors_translated():
            return [self._run(kind, on_progress) for kind in self._kinds() if kind.days]

    def sizes(self) -> Sizes:
        """Return the sizes of the tables that grow with time."""
        with self._errors_translated():
            with self._database.operator() as connection:
                pipeline = retention.size_of(connection, retention.PIPELINE_TABLES)
            return Sizes(None if self._dagster is None else self._dagster.size(), pipeline)

    @contextmanager
    def _errors_translated(self) -> Generator[None, None, None]:
        """Raise the errors of Dagster's connections as DatabaseUnavailableError or DatabaseSetupError."""
        try:
            yield
        except SQLAlchemyError as error:
            raise translated(error, self._database.location) from None

    def _run(self, kind: _Kind, on_progress: OnProgress) -> Pruned:
        pruned = Pruned(kind.name, kind.days, 0)
        for rows in kind.batches(self._now - timedelta(days=kind.days)):
            pruned = Pruned(kind.name, kind.days, pruned.rows + rows)
            on_progress(pruned)
        return pruned

    def _kinds(self) -> list[_Kind]:
        settings = self._runtime.settings
        kinds = [
            _Kind("syncs", settings.keep_syncs_days, self._syncs),
            _Kind("webhook deliveries", settings.keep_deliveries_days, partial(self._rows, retention.OLD_DELIVERIES)),
            _Kind("webhook events", settings.keep_webhook_events_days, partial(self._rows, retention.OLD_EVENTS)),
            _Kind("refused requests", settings.keep_refusals_days, partial(self._rows, retention.OLD_REFUSALS)),
        ]
        if self._dagster is None:
            return kinds
        # The check results come before the runs, because runs with the latest result of a check are kept.
        kept: set[str] = set()
        return [
            _Kind("details of runs", settings.keep_event_details_days, partial(self._event_details, self._dagster)),
            _Kind("check results", settings.keep_runs_days, partial(self._check_results, self._dagster, kept)),
            _Kind("runs", settings.keep_runs_days, partial(self._runs, self._dagster, kept)),
            *kinds,
        ]

    def _event_details(self, tables: DagsterTables, before: datetime) -> Iterator[int]:
        for ids in tables.event_details(before):
            if not self._is_dry:
                tables.delete_events(ids)
            yield len(ids)

    def _check_results(self, tables: DagsterTables, kept: set[str], before: datetime) -> Iterator[int]:
        for ids in tables.check_results(before, self._now - RECENT, kept):
            if not self._is_dry:
                tables.delete_check_results(ids)
            yield len(ids)

    def _runs(self, tables: DagsterTables, kept: set[str], before: datetime) -> Iterator[int]:
        for run_ids in tables.ended_runs(before, kept):
            if not self._is_dry:
                for run_id in run_ids:
                    tables.delete_run(run_id)
            yield len(run_ids)

    def _syncs(self, before: datetime) -> Iterator[int]:
        with self._database.operator() as connection:
            found = organizations.organizations(connection)
        for organization in found:
            yield from self._batches(
                partial(self._database.organization, organization.id),
                partial(retention.count_old_syncs, before=before),
                partial(retention.delete_old_syncs, before=before),
            )

    def _rows(self, old: OldRows, before: datetime) -> Iterator[int]:
        yield from self._batches(
            self._database.operator,
            partial(retention.count_rows, rows=old, before=before),
            partial(retention.delete_batch, rows=old, before=before),
        )

    def _batches(
        self,
        transaction: Callable[[], AbstractContextManager[Connection]],
        count: Callable[[Connection], int],
        delete: Callable[[Connection], int],
    ) -> Iterator[int]:
        """Yield the number of rows of each transaction."""
        while True:
            with transaction() as connection:
                rows = count(connection) if self._is_dry else delete(connection)
            yield rows
            if self._is_dry or rows < retention.BATCH_SIZE:
                return
