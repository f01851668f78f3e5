"""Computed tables, and whether their rows are still right.

`cliniko.table_states` stores a version of each table, and triggers change the version whenever rows change. For a
computed table, it also stores the inputs' versions at the last computation, and until when the rows stay right. If a
version is uncertain, the rows count as outdated. Every function runs in the caller's organization context.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from cliniko_pipeline.postgres.engine import sql, statement
from cliniko_pipeline.postgres.tables import WATCHED, Table
from cliniko_pipeline.postgres.writing.merge import Written, replace_by_query

AS_THEY_ARE = "as they are"


@dataclass(frozen=True)
class Timing:
    """How the rows of a computed table depend on the time.

    Attributes:
        as_of: the instant that the rows are computed for. The queries get it as `:as_of`.
        next_change: a query for the first later instant at which the rows may differ, or null for no such instant.
    """

    as_of: datetime
    next_change: str


@dataclass(frozen=True)
class Derivation:
    """A table that a query computes from other tables and from the contacts.

    Attributes:
        table: the computed table.
        query: the SQL query that computes the rows.
        inputs: the tables in WATCHED that the query reads. Without inputs, the rows always count as outdated.
        parameters: the query's parameters besides `:as_of`.
        timing: how the rows depend on the time; None if they do not.
        digest: a query for a text that changes with the rows of tables outside WATCHED, namely the computed table and
            further inputs. None if all tables are in WATCHED.
        inspect: called when the new rows are in the staging table. It raises an error if they must not be stored.
    """

    table: Table
    query: str
    inputs: tuple[Table, ...] = ()
    parameters: Mapping[str, object] = field(default_factory=dict[str, object])
    timing: Timing | None = None
    digest: str | None = None
    inspect: Callable[[Connection], None] | None = None

    @property
    def is_kept(self) -> bool:
        """Whether a sync keeps the rows while they are right. Rows that depend on the time are always computed."""
        return bool(self.inputs) and self.timing is None

    @property
    def bound(self) -> dict[str, object]:
        """All parameters of the query."""
        return dict(self.parameters) if self.timing is None else {**self.parameters, "as_of": self.timing.as_of}


@dataclass(frozen=True)
class Question:
    """A query for numbers about tables. Its result is reused while the tables are unchanged."""

    name: str
    tables: tuple[Table, ...]
    query: str
    parameters: Mapping[str, object] = field(default_factory=dict[str, object])


def write(connection: Connection, derivation: Derivation, *, force: bool) -> Written | None:
    """Compute the organization's rows, write the differences, and return their numbers.

    If the rows are kept because they are still right, the result is None. With `force` they are always computed.
    """
    # The state is read before the computation, so that the next sync notices changes during the computation.
    _ensure_states(connection, (derivation.table, *derivation.inputs))
    origin = _origin(connection, derivation)
    if not force and derivation.is_kept:
        stored = _stored(connection, [derivation])
        if _is_computed_from(connection, derivation, origin, stored[_name(derivation.table)]):
            return None
    written = replace_by_query(connection, derivation.table, derivation.query, derivation.bound, derivation.inspect)
    _note_origin(connection, derivation, origin)
    return written


def are_right(connection: Connection, derivations: Sequence[Derivation], at: datetime) -> bool:
    """Return whether computations for the instant `at` would give the stored rows of all tables. Write nothing.

    All derivations have inputs. The `as_of` of their timings is ignored.
    """
    inputs = [table for derivation in derivations for table in derivation.inputs]
    state = _state(connection, list(dict.fromkeys(inputs)), AS_THEY_ARE)
    stored = _stored(connection, derivations, at)
    return state is not None and all(
        _is_computed_from(connection, derivation, _described(state, derivation), stored.get(_name(derivation.table)))
        for derivation in derivations
    )


def _origin(connection: Connection, derivation: Derivation) -> dict[str, Any] | None:
    """Return the present state of everything that the rows are computed from, or None if it is uncertain."""
    state = _state(connection, derivation.inputs, AS_THEY_ARE) if derivation.inputs else None
    return None if state is None else _described(state, derivation)


def _stored(
    connection: Connection, derivations: Sequence[Derivation], at: datetime | None = None
) -> dict[str, Row[Any]]:
    """Return by table what its rows were computed from, and whether they hold for the instant `at`."""
    rows = connection.execute(
        statement(
            "select name, version, computed_from, as_of <= :at and coalesce(:at < next_change_at, true) as is_in_time"
            " from cliniko.table_states where name = any(:names)"
        ),
        {"names": [_name(derivation.table) for derivation in derivations], "at": at},
    )
    return {row.name: row for row in rows}


def _is_computed_from(
    connection: Connection, derivation: Derivation, origin: Mapping[str, Any] | None, stored: Row[Any] | None
) -> bool:
    if origin is None or stored is None or (derivation.timing is not None and not stored.is_in_time):
        return False
    return stored.computed_from == {**origin, **_digest(connection, derivation), "itself": str(stored.version)}


def _note_origin(connection: Connection, derivation: Derivation, origin: Mapping[str, Any] | None) -> None:
    known = None if origin is None else json.dumps({**origin, **_digest(connection, derivation)})
    timing = ""
    if derivation.timing is not None:
        timing = f", as_of = :as_of, next_change_at = ({derivation.timing.next_change})"
    connection.execute(
        statement(
            "update cliniko.table_states"
            f" set computed_from = cast(:origin as jsonb) || jsonb_build_object('itself', version){timing}"
            " where name = :name"
        ),
        {**derivation.bound, "name": _name(derivation.table), "origin": known},
    )


def _digest(connection: Connection, derivation: Derivation) -> dict[str, str]:
    if derivation.digest is None:
        return {}
    return {"digest": connection.execute(statement(derivation.digest)).scalar_one()}


def is_watched(connection: Connection, table: Table) -> bool:
    """Return whether triggers record the table's changes. The table must have changed at least once."""
    return _state(connection, [table]) is not None


def row_count(connection: Connection, schema: str, table: str, *, force: bool = False) -> int:
    """Return the organization's row count. `force` ignores the stored count of a WATCHED table."""
    count = f"select count(*) from {Table(schema, table, (), ()).qualified}"
    watched = [known for known in WATCHED if (known.schema, known.name) == (schema, table)]
    if not watched:
        return connection.execute(sa.text(count)).scalar_one()
    _ensure_states(connection, watched)
    name = {"name": _name(watched[0])}
    kept = connection.execute(
        statement("select row_count from cliniko.table_states where name = :name"), name
    ).scalar_one()
    if kept is not None and not force:
        return kept
    # Concurrent changes wait for this lock. Then their triggers adjust the new count.
    connection.execute(statement("select from cliniko.table_states where name = :name for update"), name)
    counted = connection.execute(sa.text(count)).scalar_one()
    connection.execute(
        statement("update cliniko.table_states set row_count = :rows where name = :name"), {**name, "rows": counted}
    )
    return counted


def read_or_compute(
    connection: Connection, question: Question, compute: Callable[[], Mapping[str, int | bool]], *, force: bool
) -> tuple[dict[str, Any], bool]:
    """Return the stored result if the tables are unchanged, else compute and store the result.

    The second value tells whether the stored result was returned. Results are stored in `cliniko.table_states`, in the
    row of the question's first table.
    """
    _ensure_states(connection, question.tables)
    found_state = _state(connection, question.tables)
    state = None if found_state is None else _described(found_state, question)
    name = {"name": _name(question.tables[0])}
    if state is not None and not force:
        kept = connection.execute(
            statement("select findings -> cast(:question as text) from cliniko.table_states where name = :name"),
            {**name, "question": question.name},
        ).scalar_one()
        if kept is not None and kept["of"] == state:
            return kept["found"], True
    found = dict(compute())
    if state is not None:
        connection.execute(
            statement("update cliniko.table_states set findings = findings || cast(:kept as jsonb) where name = :name"),
            {**name, "kept": json.dumps({question.name: {"of": state, "found": found}})},
        )
    return found, False


def _state(connection: Connection, tables: Sequence[Table], contacts: str | None = None) -> Row[Any] | None:
    """Return the present state of the tables, or None if it is uncertain."""
    names = [_name(table) for table in tables]
    row = connection.execute(statement(sql("transforms/inputs_state")), {"names": names, "contacts": contacts}).one()
    return None if row.tables is None or (contacts is not None and row.contacts is None) else row


def _described(state: Row[Any], source: "Derivation | Question") -> dict[str, Any]:
    """Return what the result is computed from, of a state that includes its inputs."""
    tables = source.inputs if isinstance(source, Derivation) else source.tables
    return {
        "tables": {name: state.tables[name] for name in map(_name, tables)},
        "contacts": state.contacts,
        "server": state.server,
        "functions": state.functions,
        "query": hashlib.sha256(source.query.encode()).hexdigest(),
        "parameters": {name: str(value) for name, value in source.parameters.items()},
    }


def _ensure_states(connection: Connection, tables: Sequence[Table]) -> None:
    """Give a version to each table that lacks a version, so that its next change is recorded."""
    connection.execute(statement(sql("transforms/ensure_states")), {"names": [_name(table) for table in tables]})


def _name(table: Table) -> str:
    return f"{table.schema}.{table.name}"
