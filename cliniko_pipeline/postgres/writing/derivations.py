"""Computed tables, recomputed only when their inputs have changed.

`cliniko.table_states` stores a version of each table, and triggers change the version whenever rows change. For a
computed table, it also stores the inputs' versions at the last computation. If a version is uncertain, the table is
recomputed. Every function runs in the caller's organization context.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import sql, statement
from cliniko_pipeline.postgres.tables import WATCHED, Table
from cliniko_pipeline.postgres.writing.merge import Written, replace_by_query

AS_THEY_ARE = "as they are"


@dataclass(frozen=True)
class Derivation:
    """A table that a query computes from other tables and from the contacts.

    Attributes:
        table: the computed table, one of WATCHED.
        query: the SQL query that computes the rows.
        inputs: the tables that the query reads, all of them in WATCHED.
        parameters: the query's parameters. None of them may depend on the time.
        inspect: called when the new rows are in the staging table. It raises an error if they must not be stored.
    """

    table: Table
    query: str
    inputs: tuple[Table, ...]
    parameters: Mapping[str, object] = field(default_factory=dict[str, object])
    inspect: Callable[[Connection], None] | None = None


@dataclass(frozen=True)
class Question:
    """A query for numbers about tables. Its result is reused while the tables are unchanged."""

    name: str
    tables: tuple[Table, ...]
    query: str
    parameters: Mapping[str, object] = field(default_factory=dict[str, object])


def write(connection: Connection, derivation: Derivation, *, force: bool) -> Written | None:
    """Compute the organization's rows, write the differences, and return their numbers.

    If the inputs are unchanged, nothing is computed, and the result is None. With `force` the rows are always computed.
    """
    # The state is read before the computation, so that the next sync notices changes during the computation.
    _ensure_states(connection, (derivation.table, *derivation.inputs))
    origin = _inputs_state(connection, derivation.inputs, derivation.query, derivation.parameters, contacts=AS_THEY_ARE)
    if not force and origin is not None and _is_computed_from(connection, derivation.table, origin):
        return None
    written = replace_by_query(
        connection, derivation.table, derivation.query, derivation.parameters, derivation.inspect
    )
    connection.execute(
        statement(
            "update cliniko.table_states"
            " set computed_from = cast(:origin as jsonb) || jsonb_build_object('itself', version) where name = :name"
        ),
        {"name": _name(derivation.table), "origin": None if origin is None else json.dumps(origin)},
    )
    return written


def _is_computed_from(connection: Connection, table: Table, origin: Mapping[str, Any]) -> bool:
    row = connection.execute(
        statement("select version, computed_from from cliniko.table_states where name = :name"), {"name": _name(table)}
    ).one()
    return row.computed_from == {**origin, "itself": str(row.version)}


def is_watched(connection: Connection, table: Table) -> bool:
    """Return whether triggers record the table's changes. The table must have changed at least once."""
    row = connection.execute(
        statement(sql("transforms/inputs_state")), {"names": [_name(table)], "contacts": None}
    ).one()
    return row.tables is not None


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
    state = _inputs_state(connection, question.tables, question.query, question.parameters)
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


def _inputs_state(
    connection: Connection,
    tables: Sequence[Table],
    query: str,
    parameters: Mapping[str, object],
    contacts: str | None = None,
) -> dict[str, Any] | None:
    row = connection.execute(
        statement(sql("transforms/inputs_state")), {"names": [_name(table) for table in tables], "contacts": contacts}
    ).one()
    if row.tables is None or (contacts is not None and row.contacts is None):
        return None
    return {
        "tables": row.tables,
        "contacts": row.contacts,
        "server": row.server,
        "functions": row.functions,
        "query": hashlib.sha256(query.encode()).hexdigest(),
        "parameters": {name: str(value) for name, value in parameters.items()},
    }


def _ensure_states(connection: Connection, tables: Sequence[Table]) -> None:
    """Give a version to each table that lacks a version, so that its next change is recorded."""
    connection.execute(statement(sql("transforms/ensure_states")), {"names": [_name(table) for table in tables]})


def _name(table: Table) -> str:
    return f"{table.schema}.{table.name}"
