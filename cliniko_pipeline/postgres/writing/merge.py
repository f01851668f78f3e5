"""Bulk writes in the caller's transaction. Rows go through a staging table into their table.

- `upsert` inserts and updates the given rows, and keeps all other rows (for batches of records).
- `replace_...` also deletes the organization's other rows (for computed tables).

The caller has opened the organization context, which decides `organization_id`. The given rows never contain it.
"""

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import msgspec
import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import DataError
from cliniko_pipeline.postgres.engine import (
    BoundStatement,
    advisory_key,
    driver_of,
    ensure_created,
    execute_pipelined,
)
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS, Table

STAGING = "pg_temp.staging"
_ORGANIZATION = "current_setting('app.organization_id')"


@dataclass(frozen=True)
class Written:
    """The numbers of rows that a write inserted, updated and deleted."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0

    def __add__(self, other: "Written") -> "Written":
        return Written(self.inserted + other.inserted, self.updated + other.updated, self.deleted + other.deleted)


def upsert(connection: Connection, table: Table, rows: Iterable[Sequence[object]]) -> Written:
    """Insert the rows, and update those whose key exists with other values.

    `rows` are tuples of text, aware datetimes, booleans, integers and None, in the order of `table.written`. If several
    rows have the same key, the last one is written.
    """
    ((inserted, updated),) = execute_pipelined(connection, [stage(connection, table, rows)])
    return Written(inserted, updated)


class RowExistsError(DataError):
    """The error that a row exists already, although it should be new. Nothing was written."""


@contextmanager
def raising_row_exists() -> Generator[None]:
    """Raise RowExistsError if PostgreSQL finds that the key of a new row exists already."""
    try:
        yield
    except psycopg.errors.UniqueViolation:
        raise RowExistsError("Rows of the batch exist already.") from None


def stage(
    connection: Connection, table: Table, rows: Iterable[Sequence[object]], *, are_new: bool = False
) -> BoundStatement:
    """Copy rows into the staging table; return the statement that merges them into the table.

    The statement selects the numbers of inserted and updated rows. With `are_new` the merge is faster, but fails if a
    row exists already (see raising_row_exists).
    """
    last_of_each = {tuple(row[: len(table.key)]): row for row in rows}
    with _refusing_unstorable_values(table):
        # Inserts in the order of the key's index are faster.
        csv = _as_csv([last_of_each[key] for key in sorted(last_of_each)])
    staging = _keep_staging(connection, table)
    options = r"format csv, null 'null', escape E'\\'"
    with _copying(connection, f"copy {staging} ({_list(table.written)}) from stdin with ({options})") as copy:
        copy.write(csv)
    return _merge_statement(table, staging, are_new=are_new), {}


def replace_by_query(
    connection: Connection,
    table: Table,
    query: str,
    parameters: Mapping[str, object],
    inspect: Callable[[Connection], None] | None = None,
) -> Written:
    """Replace the organization's rows by the rows that `query` selects.

    The query selects the columns of `table.written`. `inspect` is called when the rows are in the staging table. If
    `inspect` raises an error, the organization's rows stay unchanged.
    """
    _lock_replacement(connection, table)
    _create_staging(connection, table)
    columns = _list(table.written)
    connection.execute(
        sa.text(f"insert into {STAGING} ({columns}) select {columns} from ({query}) as computed"),
        dict(parameters),
    )
    if inspect is not None:
        inspect(connection)
    return _replace_by_staging(connection, table)


def replace_by_rows(connection: Connection, table: Table, rows: Iterable[Sequence[object]]) -> Written:
    """Replace the organization's rows by `rows`, which are tuples in the order of `table.written`."""
    _lock_replacement(connection, table)
    _create_staging(connection, table)
    _copy(connection, table, rows)
    return _replace_by_staging(connection, table)


def replace_all(connection: Connection, table: Table, rows: Iterable[Sequence[object]]) -> Written:
    """Replace all of the organization's rows in a table without a key."""
    _lock_replacement(connection, table)
    _create_staging(connection, table)
    _copy(connection, table, rows)
    deleted = _count(connection, f"delete from {table.qualified} where organization_id = {_ORGANIZATION}")
    inserted = _count(
        connection,
        f"insert into {table.qualified} (organization_id, {_list(table.written)})"
        f" select {_ORGANIZATION}, {_list(table.written)} from {STAGING}",
    )
    connection.execute(sa.text(f"drop table {STAGING}"))
    return Written(inserted=inserted, deleted=deleted)


def _lock_replacement(connection: Connection, table: Table) -> None:
    # Without the lock, two concurrent replacements could insert the same rows or delete each other's rows.
    organization = connection.execute(sa.text(f"select {_ORGANIZATION}")).scalar_one()
    key = advisory_key("replace", table.qualified, organization)
    connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": key})


def _create_staging(connection: Connection, table: Table) -> None:
    columns = _list(table.written)
    connection.execute(
        sa.text(
            f"create temporary table staging on commit drop as select {columns} from {table.qualified} with no data"
        )
    )


def _keep_staging(connection: Connection, table: Table) -> str:
    """Return the name of the connection's staging table for this table.

    The staging table is emptied after each transaction, but kept. Creating one per batch takes as long as writing the
    batch.
    """
    staging = quote(f"staging_{table.schema}_{table.name}")
    ensure_created(
        connection,
        f"create temporary table if not exists {staging} on commit delete rows"
        f" as select {_list(table.written)} from {table.qualified} with no data",
    )
    return f"pg_temp.{staging}"


def empty_staging(connection: Connection, table: Table) -> None:
    """Empty the staging table of `stage` without ending the transaction."""
    connection.execute(sa.text(f"delete from {_keep_staging(connection, table)}"))


def _copy(connection: Connection, table: Table, rows: Iterable[Sequence[object]]) -> None:
    """Copy rows with values of any type that psycopg can adapt, for an operator's own assets."""
    with _copying(connection, f"copy {STAGING} ({_list(table.written)}) from stdin") as copy:
        for row in rows:
            with _refusing_unstorable_values(table):
                copy.write_row(row)


@contextmanager
def _copying(connection: Connection, statement: str) -> Generator[psycopg.Copy]:
    with driver_of(connection).cursor() as cursor, cursor.copy(statement.encode()) as copy:
        yield copy


@contextmanager
def _refusing_unstorable_values(table: Table) -> Generator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:  # The error's text is not shown, because it may contain the value.
        raise DataError(
            f"A row for {table.schema}.{table.name} holds a value that PostgreSQL cannot store"
            f" ({type(error).__name__})."
        ) from None


_encode_lines = msgspec.json.Encoder().encode_lines
_JSON_ESCAPE = re.compile(rb"\\(?:u(....)|.)")
_CONTROL = {b"\\b": b"\b", b"\\f": b"\f", b"\\n": b"\n", b"\\r": b"\r", b"\\t": b"\t"}


def _as_csv(rows: Sequence[Sequence[object]]) -> bytes:
    """Return the rows as CSV with backslash as the escape character. Times are in ISO 8601.

    msgspec encodes each row as a JSON array on one line. Without brackets, and with control characters unescaped, such
    lines are CSV.
    """
    lines = _encode_lines(rows)[1:-2].replace(b"]\n[", b"\n")
    return _JSON_ESCAPE.sub(_unescaped, lines) if b"\\" in lines else lines


def _unescaped(escape: re.Match[bytes]) -> bytes:
    if escape[1]:
        return bytes([int(escape[1], 16)])  # msgspec writes only control characters as \uXXXX.
    return _CONTROL.get(escape[0], escape[0])  # `\"` and `\\` are escapes of the CSV, too.


@cache
def _merge_statement(table: Table, staging: str, *, are_new: bool) -> str:
    written = _list(table.written)
    update = f"""
            on conflict (organization_id, {_list(table.key)}) do update
            set {_assignments(table, "excluded")}
            where {_differs(table, "target", "excluded")}"""
    return f"""
        with merged as (
            insert into {table.qualified} as target (organization_id, {written})
            select {_ORGANIZATION}, {written} from {staging}{"" if are_new else update}
            returning xmax = 0 as is_new
        )
        select count(*) filter (where is_new), count(*) filter (where not is_new) from merged
        """


def _replace_by_staging(connection: Connection, table: Table) -> Written:
    # Only key columns are analyzed, because statistics of JSON columns take as long as writing the rows.
    connection.execute(sa.text(f"analyze {STAGING} ({_list(table.key)})"))
    same_row = " and ".join(f"target.{quote(c)} = staging.{quote(c)}" for c in table.key)
    mine = f"target.organization_id::text = {_ORGANIZATION}"  # In some applications organization_id is not text.
    deleted = _count(
        connection,
        f"delete from {table.qualified} as target where {mine}"
        f" and not exists (select from {STAGING} as staging where {same_row})",
    )
    updated = _count(
        connection,
        f"update {table.qualified} as target set {_assignments(table, 'staging')} from {STAGING} as staging"
        f" where {mine} and {same_row} and {_differs(table, 'target', 'staging')}",
    )
    stamps = "".join(f", {quote(c)}" for c in table.stamps)
    now = "".join(", now()" for _ in table.stamps)
    inserted = _count(
        connection,
        f"insert into {table.qualified} (organization_id, {_list(table.written)}{stamps})"
        f" select {_organization_of(table)}, {_list(table.written)}{now} from {STAGING} as staging"
        f" where not exists (select from {table.qualified} as target where {mine} and {same_row})"
        f" order by {_list(table.key)}",
    )
    connection.execute(sa.text(f"drop table {STAGING}"))
    return Written(inserted, updated, deleted)


def _organization_of(table: Table) -> str:
    """Return the SQL of the context's organization id, in the type of the table's column."""
    if table != ACTIVE_PATIENTS:
        return _ORGANIZATION
    row = f"jsonb_populate_record(null::{table.qualified}, jsonb_build_object('organization_id', {_ORGANIZATION}))"
    return f"(select ({row}).organization_id)"


def _assignments(table: Table, source: str) -> str:
    values = [f"{quote(c)} = {source}.{quote(c)}" for c in table.columns]
    stamps = [f"{quote(c)} = now()" for c in table.stamps if c != table.inserted]
    reappeared = ["vanished_at = null"] if table.vanishes else []
    return ", ".join(values + stamps + reappeared)


def _differs(table: Table, left: str, right: str) -> str:
    # The JSON columns come last, because comparing them is slow. Columns of type `json` can only be compared as text.
    columns = [quote(c) for c in table.columns if c not in table.arrays] + [f"{quote(c)}::text" for c in table.arrays]
    lefts = ", ".join(f"{left}.{column}" for column in columns)
    rights = ", ".join(f"{right}.{column}" for column in columns)
    vanished = f" or {left}.vanished_at is not null" if table.vanishes else ""
    return f"(({lefts}) is distinct from ({rights}){vanished})"


def _count(connection: Connection, statement: str) -> int:
    # Without this option SQLAlchemy drops the row count of INSERT .. SELECT.
    result = connection.execution_options(preserve_rowcount=True).execute(sa.text(statement))
    return result.rowcount


def _list(columns: Iterable[str]) -> str:
    return ", ".join(quote(column) for column in columns)


def quote(identifier: str) -> str:
    """Return the identifier quoted for SQL."""
    return '"' + identifier.replace('"', '""') + '"'
