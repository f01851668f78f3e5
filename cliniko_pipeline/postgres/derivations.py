"""What is computed from what, and whether that is as it was: what would come out the same is not computed again.

`cliniko.table_states` keeps a version of each table, renewed by triggers in the transaction that changes a row, and
what each computed table was computed from. In doubt everything is computed. All functions run in the organization
context the caller opened.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import sql, statement
from cliniko_pipeline.postgres.merge import Written, replace_by_query
from cliniko_pipeline.postgres.tables import CONTACT_MAPPING, WATCHED, Table

AS_THEY_ARE = "as they are"
AS_MAPPED = "as mapped"

_SEAM = "-- What the attendances come to"


@dataclass(frozen=True)
class Derivation:
    """A table that a query computes from others and from the contacts.

    Attributes:
        table: what it makes; watched, like all of `inputs`, unless there is something `through` which it is made.
        query: the SQL.
        inputs: the tables it reads. Where the mapping is one of them, the contacts count as they were when they were
            mapped: they are looked at once a sync.
        parameters: the query's; `as_of` is the instant judged by, if any: what was computed for an earlier one serves,
            for a later one not.
        through: the table that keeps what does not depend on how late it is, from the first time on that `inputs` are
            as they were: what changes at every sync is computed in one statement, and nothing is kept of it. The rest
            is computed each time.
        inspect: called when computed rows stand in the staging table; raises where they must not replace the stored.
    """

    table: Table
    query: str
    inputs: tuple[Table, ...]
    parameters: Mapping[str, object]
    through: Table | None = None
    inspect: Callable[[Connection], None] | None = None

    @property
    def lasting_parameters(self) -> dict[str, object]:
        """Those that do not change by themselves."""
        return {name: value for name, value in self.parameters.items() if name != "as_of"}


@dataclass(frozen=True)
class Question:
    """Something that is asked of tables, in numbers: `query` is the SQL, `parameters` those that stay the same."""

    name: str
    tables: tuple[Table, ...]
    query: str
    parameters: Mapping[str, object] = field(default_factory=dict[str, object])


def current_attendances(query: str) -> str:
    """The SQL that keeps the attendances which that of active_patients counts, those that can matter from now on."""
    return query.partition(_SEAM)[0] + sql("current_attendances")


def from_current_attendances(query: str) -> str:
    """The SQL of active_patients, counting those that were kept."""
    _, seam, counting = query.partition(_SEAM)
    return sql("from_current_attendances") + seam + counting


def write(connection: Connection, derivation: Derivation, *, anew: bool) -> tuple[Written, bool]:
    """Makes the organization's rows what the query computes; and tells whether it was computed, or what is there had to
    stay. `anew`: it is computed in any case.
    """
    if derivation.through is None:
        written = _renew(connection, derivation, anew=anew)
        return written or Written(), written is not None
    # What it was made of does not depend on the instant.
    lasting = replace(derivation, parameters=derivation.lasting_parameters)
    _ensure_states(connection, (derivation.table, *derivation.inputs))
    origin = _origin(connection, lasting)
    is_same = _is_as_it_was(connection, lasting, origin)
    if anew or is_same:
        kept = replace(derivation, table=derivation.through, query=current_attendances(derivation.query), through=None)
        is_computed = _renew(connection, kept, anew=anew) is not None
        query, inspect = from_current_attendances(derivation.query), None
    else:
        is_computed, query, inspect = True, derivation.query, derivation.inspect
    written = replace_by_query(connection, derivation.table, query, derivation.parameters, inspect)
    if not is_same:
        _note_origin(connection, lasting, origin)
    return written, is_computed


def _renew(connection: Connection, derivation: Derivation, *, anew: bool) -> Written | None:
    """Computes the table, unless it would come out the same (None)."""
    # Before it is computed: what changes meanwhile makes the next one compute again.
    _ensure_states(connection, (derivation.table, *derivation.inputs))
    origin = _origin(connection, derivation)
    if not anew and _is_as_it_was(connection, derivation, origin):
        return None
    written = replace_by_query(
        connection, derivation.table, derivation.query, derivation.parameters, derivation.inspect
    )
    _note_origin(connection, derivation, origin)
    return written


def _note_origin(connection: Connection, derivation: Derivation, origin: Mapping[str, Any] | None) -> None:
    connection.execute(
        statement(
            "update cliniko.table_states set as_of = :as_of,"
            " computed_from = cast(:origin as jsonb) || jsonb_build_object('itself', version) where name = :name"
        ),
        {
            "name": _name(derivation.table),
            "as_of": derivation.parameters.get("as_of"),
            "origin": None if origin is None else json.dumps(origin),
        },
    )


def _is_as_it_was(connection: Connection, derivation: Derivation, origin: Mapping[str, Any] | None) -> bool:
    if origin is None:
        return False
    row = connection.execute(
        statement(
            "select version, computed_from, cast(:as_of as timestamptz) is null or as_of <= :as_of as serves"
            " from cliniko.table_states where name = :name"
        ),
        {"name": _name(derivation.table), "as_of": derivation.parameters.get("as_of")},
    ).one()
    return bool(row.serves) and row.computed_from == {**origin, "itself": str(row.version)}


def is_current(connection: Connection, table: Table, inputs: Sequence[Table]) -> bool:
    """Whether nothing has changed in the tables since the computed one was made of them."""
    row = connection.execute(statement(sql("standing")), {"names": [*map(_name, inputs)], "contacts": None}).one()
    origin = connection.execute(
        statement("select computed_from from cliniko.table_states where name = :name"), {"name": _name(table)}
    ).scalar_one_or_none()
    return origin is not None and origin["tables"] == row.tables


def is_watched(connection: Connection, table: Table) -> bool:
    """Whether changes of the table, of which there must have been one, are noted: its triggers are there, and fire."""
    row = connection.execute(statement(sql("standing")), {"names": [_name(table)], "contacts": None}).one()
    return row.tables is not None


def row_count(connection: Connection, schema: str, table: str, *, anew: bool = False) -> int:
    """How many rows the organization has: counted once, or `anew`, and then kept, of a table that is watched."""
    count = f"select count(*) from {Table(schema, table, (), ()).qualified}"
    watched = [each for each in WATCHED if (each.schema, each.name) == (schema, table)]
    if not watched:
        return connection.execute(sa.text(count)).scalar_one()
    _ensure_states(connection, watched)
    name = {"name": _name(watched[0])}
    known = connection.execute(
        statement("select row_count from cliniko.table_states where name = :name"), name
    ).scalar_one()
    if known is not None and not anew:
        return known
    # Whoever changes rows from here on waits before that is noted, and adds to what is counted now.
    connection.execute(statement("select from cliniko.table_states where name = :name for update"), name)
    counted = connection.execute(sa.text(count)).scalar_one()
    connection.execute(
        statement("update cliniko.table_states set row_count = :rows where name = :name"), {**name, "rows": counted}
    )
    return counted


def found_before(
    connection: Connection, question: Question, look: Callable[[], Mapping[str, int | bool]], *, anew: bool
) -> tuple[dict[str, Any], bool]:
    """What `look` finds, or found earlier of the same rows; and which of the two. Kept with the first of the tables."""
    _ensure_states(connection, question.tables)
    standing = _standing(connection, question.tables, question.query, question.parameters)
    name = {"name": _name(question.tables[0])}
    if standing is not None and not anew:
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


def _origin(connection: Connection, derivation: Derivation) -> dict[str, Any] | None:
    """What the table would be computed from now; None where that cannot be told."""
    contacts = AS_MAPPED if CONTACT_MAPPING in derivation.inputs else AS_THEY_ARE
    return _standing(connection, derivation.inputs, derivation.query, derivation.lasting_parameters, contacts)


def _standing(
    connection: Connection,
    tables: Sequence[Table],
    query: str,
    parameters: Mapping[str, object],
    contacts: str | None = None,
) -> dict[str, Any] | None:
    row = connection.execute(
        statement(sql("standing")), {"names": [_name(table) for table in tables], "contacts": contacts}
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
    connection.execute(statement(sql("ensure_states")), {"names": [_name(table) for table in tables]})


def _name(table: Table) -> str:
    return f"{table.schema}.{table.name}"
