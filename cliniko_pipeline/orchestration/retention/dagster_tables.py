"""The old rows of Dagster's tables: details of events, check results, and ended runs.

Each function reads a table in the order of ids, which is the order of time, and stops at the first batch without old
rows. So it reads no more than the old rows, also where PostgreSQL has no statistics. The statements use the connections
of Dagster's storage, because an operator's `dagster.yaml` may store runs in another database.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.orchestration.runs.in_flight import UNFINISHED
from cliniko_pipeline.postgres.engine import sql, statement

if TYPE_CHECKING:
    from dagster_postgres.event_log import PostgresEventLogStorage
    from dagster_postgres.run_storage import PostgresRunStorage

EVENTS_OF_BATCH = 2000
CHECK_RESULTS_OF_BATCH = 20_000
"""Large enough to hold two results of each check of most organizations, so that the older one can be deleted."""
RUNS_OF_BATCH = 100

TABLES = ("event_logs", "runs", "run_tags", "asset_event_tags", "asset_check_executions", "job_ticks")
"""The tables of Dagster that grow with time."""

_TYPE = dg.DagsterEventType
_PLANS = (_TYPE.ASSET_MATERIALIZATION_PLANNED, _TYPE.ASSET_CHECK_EVALUATION_PLANNED)
_DETAILS = (
    _TYPE.ENGINE_EVENT,
    _TYPE.RESOURCE_INIT_STARTED,
    _TYPE.RESOURCE_INIT_SUCCESS,
    _TYPE.STEP_INPUT,
    _TYPE.LOADED_INPUT,
    _TYPE.STEP_OUTPUT,
    _TYPE.HANDLED_OUTPUT,
    *_PLANS,
)
_LOG_MESSAGES = "is null"
CONDITIONS = (_LOG_MESSAGES, *(f"= '{type_.value}'" for type_ in _DETAILS))
"""Conditions for the types of events that are details: nothing but the page of their run shows them."""

_REPLACING = [_TYPE.ASSET_MATERIALIZATION.value, _TYPE.ASSET_MATERIALIZATION_PLANNED.value]
_SHOWN = [_TYPE.ASSET_MATERIALIZATION.value, _TYPE.ASSET_OBSERVATION.value]
_ENDED = [status.value for status in dg.DagsterRunStatus if status not in UNFINISHED]

_NEXT_RUNS = (
    "select id, run_id, create_timestamp as at, status = any(:ended) and update_timestamp < :before as has_ended"
    " from runs where id > :after order by id limit :limit"
)

_Row = sa.Row[Any]
_Check = tuple[str, str, str | None]
"""The asset key, name and partition of a check."""


class DagsterTables:
    """The tables of an instance whose storage is in PostgreSQL."""

    def __init__(self, events: "PostgresEventLogStorage", runs: "PostgresRunStorage") -> None:
        self._events = events
        self._runs = runs

    def event_details(self, before: datetime) -> Iterator[list[int]]:
        """Yield batches of the ids of old events that are details of ended runs."""
        with self._events.index_connection() as connection:
            parameters = {"unfinished": _unfinished_runs(connection), "replacing": _REPLACING}
            for condition in CONDITIONS:
                text = sql("retention/event_details").format(condition=condition)
                for rows in _old_rows(connection, text, before, EVENTS_OF_BATCH, parameters):
                    yield [row.id for row in rows if not row.is_kept]

    def delete_events(self, ids: Sequence[int]) -> None:
        """Delete these events. They must be details."""
        with self._events.index_connection() as connection:
            connection.execute(statement("delete from event_logs where id = any(:ids)"), {"ids": list(ids)})

    def check_results(self, before: datetime, recent: datetime, kept: set[str]) -> Iterator[list[int]]:
        """Yield batches of the ids of old check results that a later result of the same check and partition replaces.

        A later result is found if it is younger than `recent`, or in the same batch. The runs of the old results that
        are not replaced are added to `kept`.
        """
        with self._events.index_connection() as connection:
            since = _checks_since(connection, recent)
            text = sql("retention/check_results")
            for rows in _old_rows(connection, text, before, CHECK_RESULTS_OF_BATCH, {}):
                last = {(_check_of(row), row.is_planned): row.id for row in rows}
                deleted = [row for row in rows if _is_replaced(row, since, last)]
                kept.update({row.run_id for row in rows} - {row.run_id for row in deleted})
                yield [row.id for row in deleted]

    def delete_check_results(self, ids: Sequence[int]) -> None:
        """Delete these check results."""
        with self._events.index_connection() as connection:
            delete = statement("delete from asset_check_executions where id = any(:ids)")
            connection.execute(delete, {"ids": list(ids)})

    def ended_runs(self, before: datetime, kept: set[str]) -> Iterator[list[str]]:
        """Yield batches of runs that ended before `before`.

        Left out are the runs in `kept`, and the runs with the latest materialization of a partition.
        """
        parameters = {"ended": _ENDED, "before": _naive(before)}
        with self._runs.connect() as connection:
            for rows in _old_rows(connection, _NEXT_RUNS, before, RUNS_OF_BATCH, parameters):
                ended = [row.run_id for row in rows if row.has_ended and row.run_id not in kept]
                latest = set(
                    connection.execute(
                        statement(sql("retention/latest_materializations")), {"run_ids": ended, "types": _SHOWN}
                    ).scalars()
                )
                yield [run_id for run_id in ended if run_id not in latest]

    def delete_run(self, run_id: str) -> None:
        """Delete the run with its events.

        The events go first. So if this process is killed, the run is still there, and the next prune finds it.
        `DagsterInstance.delete_run` deletes the run first, which would leave events that no prune finds.
        """
        self._events.delete_events(run_id)
        self._runs.delete_run(run_id)

    def size(self) -> int:
        """Return the bytes of the tables that grow, with their indexes."""
        with self._events.index_connection() as connection:
            return _size(connection)


def dagster_tables(instance: dg.DagsterInstance) -> DagsterTables | None:
    """Return the instance's tables, or None if its storage is not PostgreSQL."""
    # Imported here, because they import Alembic, which the processes of runs do not need.
    from dagster_postgres.event_log import PostgresEventLogStorage  # noqa: PLC0415
    from dagster_postgres.run_storage import PostgresRunStorage  # noqa: PLC0415

    events, runs = instance.event_log_storage, instance.run_storage
    if isinstance(events, PostgresEventLogStorage) and isinstance(runs, PostgresRunStorage):
        return DagsterTables(events, runs)
    return None


def _old_rows(
    connection: Connection, text: str, before: datetime, limit: int, parameters: Mapping[str, object]
) -> Iterator[list[_Row]]:
    """Yield batches of the rows that are older than `before`. The text reads the rows after an id, in order."""
    after, latest = 0, _naive(before)
    while True:
        rows = connection.execute(statement(text), {**parameters, "after": after, "limit": limit}).all()
        # A machine's clock may be wrong, so the rows are not exactly in the order of time.
        old = [row for row in rows if row.at < latest]
        if old:
            yield old
        if len(rows) < limit or not old:
            return
        after = rows[-1].id


def _unfinished_runs(connection: Connection) -> list[str]:
    unfinished = [status.value for status in UNFINISHED]
    found = connection.execute(statement("select run_id from runs where status = any(:s)"), {"s": unfinished})
    return list(found.scalars())


def _check_of(row: _Row) -> _Check:
    return row.asset_key, row.check_name, row.partition


def _is_replaced(row: _Row, since: set[tuple[_Check, bool]], last: Mapping[tuple[_Check, bool], int]) -> bool:
    """Return whether a later row replaces this one. A planned result that never came replaces only such results."""
    result, plan = (_check_of(row), False), (_check_of(row), True)
    if result in since or last.get(result, 0) > row.id:
        return True
    return row.is_planned and (plan in since or last.get(plan, 0) > row.id)


def _checks_since(connection: Connection, recent: datetime) -> set[tuple[_Check, bool]]:
    """Return the checks and partitions with a result since `recent`, and whether the result is only planned."""
    first = _first_check_result(connection, recent)
    rows = connection.execute(
        statement(
            "select distinct asset_key, check_name, partition, execution_status = 'PLANNED' as is_planned"
            " from asset_check_executions where id >= :first"
        ),
        {"first": first},
    )
    return {(_check_of(row), row.is_planned) for row in rows}


def _first_check_result(connection: Connection, since: datetime) -> int:
    """Return the id from which on all results are younger than `since`, by binary search, as no index has the time."""
    bounds = "select coalesce(min(id), 0), coalesce(max(id), 0) from asset_check_executions"
    low, high = connection.execute(statement(bounds)).one()
    high += 1
    text = statement(sql("retention/check_results"))
    while low < high:
        middle = (low + high) // 2
        row = connection.execute(text, {"after": middle - 1, "limit": 1}).one_or_none()
        if row is None or row.at >= _naive(since):
            high = middle
        else:
            low = row.id + 1
    return low


def _naive(instant: datetime) -> datetime:
    """Return the instant as Dagster stores it: in UTC, without a zone."""
    return instant.astimezone(UTC).replace(tzinfo=None)


def _size(connection: Connection) -> int:
    total = statement("select sum(pg_total_relation_size(to_regclass(name)))::bigint from unnest(:tables) as name")
    return connection.execute(total, {"tables": list(TABLES)}).scalar_one()
