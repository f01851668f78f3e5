"""Writing many rows at once: COPY or a query into a staging table, then one merge, all in the caller's transaction.

Two meanings of a write, and no third:

- `upsert` adds and renews the rows given and leaves all others (records read from Cliniko, batch by batch);
- `replace` makes the organization's rows exactly those given (what a transformation computed).

Both run in the organization context: `organization_id` is taken from it, never from the data.
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
from cliniko_pipeline.postgres.engine import Sent, advisory_key, at_once, driver_of, once, sql
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS, Table

STAGING = "pg_temp.staging"
_ORGANIZATION = "current_setting('app.organization_id')"


@dataclass(frozen=True)
class Written:
    """How many rows a write inserted, changed and deleted; rows that were already right count nowhere."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0

    def __add__(self, other: "Written") -> "Written":
        return Written(self.inserted + other.inserted, self.updated + other.updated, self.deleted + other.deleted)


def upsert(connection: Connection, table: Table, rows: Iterable[Sequence[object]]) -> Written:
    """Adds the rows, or renews those whose key is there with other contents.

    `rows` are tuples of text, aware datetimes, booleans, whole numbers and None, in the order of `table.written`. Of
    several with one key the last counts: it was read last.
    """
    ((inserted, updated),) = at_once(connection, [staged(connection, table, rows)])
    return Written(inserted, updated)


class RowsAreThereError(DataError):
    """What was taken for new is there, all or some of it. Nothing was written."""


@contextmanager
def refusing_rows_that_are_there() -> Generator[None]:
    """Raises RowsAreThereError where PostgreSQL finds a row there that was `staged` as a new one."""
    try:
        yield
    except psycopg.errors.UniqueViolation:
        raise RowsAreThereError("Rows that were taken for new ones are there.") from None


def staged(connection: Connection, table: Table, rows: Iterable[Sequence[object]], *, are_new: bool = False) -> Sent:
    """The same but for the statement that merges them, which is still to be sent: what it tells are the first two of
    Written. Where all `are_new` it takes less, and fails where one is not (see refusing_rows_that_are_there).
    """
    last_of_each = {tuple(row[: len(table.key)]): row for row in rows}
    with _refusing_what_cannot_be_stored(table):
        # In the order of the index, since that is faster; PostgreSQL would take longer to bring them into it.
        csv = _as_csv([last_of_each[key] for key in sorted(last_of_each)])
    staging = _keep_staging(connection, table)
    options = r"format csv, null 'null', escape E'\\'"
    with _copying(connection, f"copy {staging} ({_list(table.written)}) from stdin with ({options})") as copy:
        copy.write(csv)
    return _merging(table, staging, are_new=are_new), {}


def replace_by_query(
    connection: Connection,
    table: Table,
    query: str,
    parameters: Mapping[str, object],
    inspect: Callable[[Connection], None] | None = None,
) -> Written:
    """Makes the organization's rows exactly what `query` selects (columns named as in `table.written`). `inspect` is
    called when they stand in the staging table, and may raise.
    """
    _one_writer_at_a_time(connection, table)
    _create_staging(connection, table)
    connection.execute(sa.text(sql("transforms/plan_for_whole_tables")))
    columns = _list(table.written)
    connection.execute(
        sa.text(f"insert into {STAGING} ({columns}) select {columns} from ({query}) as computed"),
        dict(parameters),
    )
    if inspect is not None:
        inspect(connection)
    return _replace_by_staging(connection, table)


def replace_by_rows(connection: Connection, table: Table, rows: Iterable[Sequence[object]]) -> Written:
    """Makes the organization's rows exactly `rows`, tuples in the order of `table.written`."""
    _one_writer_at_a_time(connection, table)
    _create_staging(connection, table)
    _copy(connection, table, rows)
    return _replace_by_staging(connection, table)


def replace_all(connection: Connection, table: Table, rows: Iterable[Sequence[object]]) -> Written:
    """The same for a table without a key: all of the organization's rows go, and these come."""
    _one_writer_at_a_time(connection, table)
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


def _one_writer_at_a_time(connection: Connection, table: Table) -> None:
    # Two replacements that read the table before either wrote it would both insert, or undo each other.
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
    """The name of a staging table that stays with the connection, empty after each transaction: to make one for every
    batch and drop it again takes as long as to write the batch.
    """
    staging = quote(f"staging_{table.schema}_{table.name}")
    once(
        connection,
        f"create temporary table if not exists {staging} on commit delete rows"
        f" as select {_list(table.written)} from {table.qualified} with no data",
    )
    return f"pg_temp.{staging}"


def empty_staging(connection: Connection, table: Table) -> None:
    """Empty the staging table of `staged` before the end of the transaction."""
    connection.execute(sa.text(f"delete from {_keep_staging(connection, table)}"))


def _copy(connection: Connection, table: Table, rows: Iterable[Sequence[object]]) -> None:
    """Rows of whatever types an operator's own asset has: psycopg adapts each value."""
    with _copying(connection, f"copy {STAGING} ({_list(table.written)}) from stdin") as copy:
        for row in rows:
            with _refusing_what_cannot_be_stored(table):
                copy.write_row(row)


@contextmanager
def _copying(connection: Connection, statement: str) -> Generator[psycopg.Copy]:
    with driver_of(connection).cursor() as cursor, cursor.copy(statement.encode()) as copy:
        yield copy


@contextmanager
def _refusing_what_cannot_be_stored(table: Table) -> Generator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:  # half a character, say; the error quotes it
        raise DataError(
            f"A row for {table.schema}.{table.name} holds a value that PostgreSQL cannot store"
            f" ({type(error).__name__})."
        ) from None


_encode_lines = msgspec.json.Encoder().encode_lines
_JSON_ESCAPE = re.compile(rb"\\(?:u(....)|.)")
_CONTROL = {b"\\b": b"\b", b"\\f": b"\f", b"\\n": b"\n", b"\\r": b"\r", b"\\t": b"\t"}


def _as_csv(rows: Sequence[Sequence[object]]) -> bytes:
    """JSON arrays, a line each, are CSV but for their brackets, and for control characters: these stand in quotes as
    they are, while JSON escapes them. Instants become ISO 8601 in UTC or with their offset.
    """
    lines = _encode_lines(rows)[1:-2].replace(b"]\n[", b"\n")
    return _JSON_ESCAPE.sub(_unescaped, lines) if b"\\" in lines else lines


def _unescaped(escape: re.Match[bytes]) -> bytes:
    if escape[1]:
        return bytes([int(escape[1], 16)])  # msgspec escapes nothing else so
    return _CONTROL.get(escape[0], escape[0])  # a quotation mark and a backslash stay escaped


@cache
def _merging(table: Table, staging: str, *, are_new: bool) -> str:
    written = _list(table.written)
    renewal = f"""
            on conflict (organization_id, {_list(table.key)}) do update
            set {_assignments(table, "excluded")}
            where {_differs(table, "target", "excluded")}"""
    return f"""
        with merged as (
            insert into {table.qualified} as target (organization_id, {written})
            select {_ORGANIZATION}, {written} from {staging}{"" if are_new else renewal}
            returning xmax = 0 as is_new
        )
        select count(*) filter (where is_new), count(*) filter (where not is_new) from merged
        """


def _replace_by_staging(connection: Connection, table: Table) -> Written:
    # Of nothing else: to sort thousands of JSON arrays, to know how they are spread, takes as long as to write them.
    connection.execute(sa.text(f"analyze {STAGING} ({_list(table.key)})"))
    same_row = " and ".join(f"target.{quote(c)} = staging.{quote(c)}" for c in table.key)
    mine = f"target.organization_id::text = {_ORGANIZATION}"  # the application may have another type
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
    """The organization of the context, in the type that the table has it in."""
    if table != ACTIVE_PATIENTS:
        return _ORGANIZATION
    row = f"jsonb_populate_record(null::{table.qualified}, jsonb_build_object('organization_id', {_ORGANIZATION}))"
    return f"(select ({row}).organization_id)"


def _assignments(table: Table, source: str) -> str:
    values = [f"{quote(c)} = {source}.{quote(c)}" for c in table.columns]
    stamps = [f"{quote(c)} = now()" for c in table.stamps if c != table.inserted]
    there_again = ["vanished_at = null"] if table.vanishes else []
    return ", ".join(values + stamps + there_again)


def _differs(table: Table, left: str, right: str) -> str:
    # What is dear to compare comes last. The application may have it as json, which cannot be compared but as text.
    columns = [quote(c) for c in table.columns if c not in table.arrays] + [f"{quote(c)}::text" for c in table.arrays]
    lefts = ", ".join(f"{left}.{each}" for each in columns)
    rights = ", ".join(f"{right}.{each}" for each in columns)
    vanished = f" or {left}.vanished_at is not null" if table.vanishes else ""
    return f"(({lefts}) is distinct from ({rights}){vanished})"


def _count(connection: Connection, statement: str) -> int:
    # psycopg knows no count for INSERT .. SELECT unless it is asked to keep it.
    result = connection.execution_options(preserve_rowcount=True).execute(sa.text(statement))
    return result.rowcount


def _list(columns: Iterable[str]) -> str:
    return ", ".join(quote(column) for column in columns)


def quote(identifier: str) -> str:
    """The identifier, quoted for SQL."""
    return '"' + identifier.replace('"', '""') + '"'
