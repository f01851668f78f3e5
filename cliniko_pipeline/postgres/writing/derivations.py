"""Computed tables: computed again only when what they are computed from has changed.

`cliniko.table_states` keeps a version of each table, renewed by triggers in the transaction that changes a row, and
what a computed table was computed from. In doubt it is computed. All functions run in the organization context that the
caller opened.
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
    """A table that a query computes from others and from the contacts.

    Attributes:
        table: what is computed. It is watched, and so are all of `inputs`.
        query: the SQL.
        inputs: the tables that the query reads.
        parameters: the query's; none of them may depend on the time.
        inspect: called when the computed rows stand in the staging table; raises where they must not replace the stored
            ones.
    """

    table: Table
    query: str
    inputs: tuple[Table, ...]
    parameters: Mapping[str, object] = field(default_factory=dict[str, object])
    inspect: Callable[[Connection], None] | None = None


@dataclass(frozen=True)
class Question:
    """Something that is asked of tables, in numbers: `query` is the SQL, `parameters` those that stay the same."""

    name: str
    tables: tuple[Table, ...]
    query: str
    parameters: Mapping[str, object] = field(default_factory=dict[str, object])


def write(connection: Connection, derivation: Derivation, *, force: bool) -> Written | None:
    """Compute the organization's rows and write what differs; return None if nothing has changed since the last time.

    With `force` the rows are computed in any case.
    """
    # Read before the computation: a change in between makes the next sync compute again.
    _ensure_states(connection, (derivation.table, *derivation.inputs))
    origin = _standing(connection, derivation.inputs, derivation.query, derivation.parameters, contacts=AS_THEY_ARE)
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
    """Whether changes of the table, of which there must have been one, are noted: its triggers are there, and fire."""
    row = connection.execute(statement(sql("transforms/standing")), {"names": [_name(table)], "contacts": None}).one()
    return row.tables is not None


def row_count(connection: Connection, schema: str, table: str, *, force: bool = False) -> int:
    """How many rows the organization has: counted once, or `force`, and then kept, of a table that is watched."""
    count = f"select count(*) from {Table(schema, table, (), ()).qualified}"
    watched = [each for each in WATCHED if (each.schema, each.name) == (schema, table)]
    if not watched:
        return connection.execute(sa.text(count)).scalar_one()
    _ensure_states(connection, watched)
    name = {"name": _name(watched[0])}
    known = connection.execute(
        statement("select row_count from cliniko.table_states where name = :name"), name
    ).scalar_one()
    if known is not None and not force:
        return known
    # Whoever changes rows from here on waits before that is noted, and adds to what is counted now.
    connection.execute(statement("select from cliniko.table_states where name = :name for update"), name)
    counted = connection.execute(sa.text(count)).scalar_one()
    connection.execute(
        statement("update cliniko.table_states set row_count = :rows where name = :name"), {**name, "rows": counted}
    )
    return counted


def found_before(
    connection: Connection, question: Question, look: Callable[[], Mapping[str, int | bool]], *, force: bool
) -> tuple[dict[str, Any], bool]:
    """What `look` finds, or found earlier of the same rows; and which of the two. Kept with the first of the tables."""
    _ensure_states(connection, question.tables)
    standing = _standing(connection, question.tables, question.query, question.parameters)
    name = {"name": _name(question.tables[0])}
    if standing is not None and not force:
        kept = connection.execute(
            statement("select findings -> cast(:question as text) from cliniko.table_states where name = :name"),
            {**name, "question": question.name},
        ).scalar_one()
        if kept is not None and kept["of"] == standing:
            return kept["found"], True
    found = dict(look())
    if standing is not None:
        connection.execute(
            statement("update cliniko.table_states set findings = findings || cast(:kept as jsonb) where name = :name"),
            {**name, "kept": json.dumps({question.name: {"of": standing, "found": found}})},
        )
    return found, False


def _standing(
    connection: Connection,
    tables: Sequence[Table],
    query: str,
    parameters: Mapping[str, object],
    contacts: str | None = None,
) -> dict[str, Any] | None:
    row = connection.execute(
        statement(sql("transforms/standing")), {"names": [_name(table) for table in tables], "contacts": contacts}
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
    """Gives each table a version that has none: from then on nothing happens to it unnoticed."""
    connection.execute(statement(sql("transforms/ensure_states")), {"names": [_name(table) for table in tables]})


def _name(table: Table) -> str:
    return f"{table.schema}.{table.name}"
