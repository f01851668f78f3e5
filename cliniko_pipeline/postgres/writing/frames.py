"""Writes and reads of tenant tables as pandas DataFrames, for an operator's own assets.

A missing table is created under forced row-level security, like all tenant tables.
"""

import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import sqlalchemy as sa
from psycopg.types.json import Jsonb
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import DataError
from cliniko_pipeline.postgres.engine import Database, advisory_key, sql
from cliniko_pipeline.postgres.schema.isolation import isolate_table
from cliniko_pipeline.postgres.tables import WRITTEN, Table
from cliniko_pipeline.postgres.writing.merge import Written, quote, replace_all, replace_by_rows

_COLUMN_NAME = re.compile(r"[^\W\d][\w ]*")
# PostgreSQL truncates longer names.
_MAX_NAME_BYTES = 63

# The first match applies, so bool comes before its base class int, and datetime before its base class date.
_SQL_TYPES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    ((bool, np.bool_), "boolean"),
    ((int, np.integer), "bigint"),
    ((float, np.floating), "double precision"),
    (Decimal, "numeric"),
    (UUID, "uuid"),
    (datetime, "timestamptz"),
    (date, "date"),
    (timedelta, "interval"),
    ((dict, list), "jsonb"),
    (str, "text"),
)

# The dtypes of columns without and with missing values. Columns of other types (numeric, uuid, jsonb) are objects.
_FRAME_TYPES = {
    "smallint": ("int64", "Int64"),
    "integer": ("int64", "Int64"),
    "bigint": ("int64", "Int64"),
    "boolean": ("bool", "boolean"),
    "real": ("float64", "float64"),
    "double precision": ("float64", "float64"),
    "timestamp without time zone": ("datetime64[us]", "datetime64[us]"),
    "timestamp with time zone": ("datetime64[us, UTC]", "datetime64[us, UTC]"),
    "interval": ("timedelta64[us]", "timedelta64[us]"),
}
_INTEGERS = ("smallint", "integer", "bigint")


def write(database: Database, organization_id: str, schema: str, name: str, frame: pd.DataFrame) -> Written:
    """Replace the organization's rows by the rows of the frame. The index is not stored.

    Raises DataError if the frame has a column `organization_id`, columns that differ from the table's columns, or a
    value that PostgreSQL cannot store.
    """
    columns = _usable_columns(frame, f"{schema}.{name}")
    table = _known(schema, name)
    if table is None:
        _ensure_table(database, schema, name, frame)
        table = Table(schema, name, key=(), columns=columns)
    elif set(columns) != set(table.written):
        raise DataError(
            f"The DataFrame for {schema}.{name} must have the columns {', '.join(table.written)};"
            f" it has {', '.join(columns) or 'none'}."
        )
    with database.organization(organization_id) as connection:
        rows = _rows(frame.loc[:, list(table.written)], _columns(connection, schema, name))
        return replace_by_rows(connection, table, rows) if table.key else replace_all(connection, table, rows)


def read(database: Database, organization_id: str, schema: str, name: str) -> pd.DataFrame:
    """Return the organization's rows without the column `organization_id`."""
    with database.organization(organization_id) as connection:
        result = connection.execute(sa.text(f"select * from {quote(schema)}.{quote(name)}"))
        names = list(result.keys())
        rows = result.all()
        types = _columns(connection, schema, name)
    columns = {
        column: _series([row[position] for row in rows], types[column])
        for position, column in enumerate(names)
        if column != "organization_id"
    }
    return pd.DataFrame(columns)


def _series(values: list[Any], sql_type: str) -> "pd.Series[Any]":
    if sql_type == "text" and any(value is not None for value in values):
        return pd.Series(values)  # pandas chooses, because the dtype of texts differs between its versions.
    complete, gaps = _FRAME_TYPES.get(sql_type, ("object", "object"))
    return pd.Series(values, dtype=gaps if None in values else complete)


def _usable_columns(frame: pd.DataFrame, table: str) -> tuple[str, ...]:
    columns = tuple(frame.columns)
    if not columns:
        raise DataError(f"The DataFrame for {table} has no columns: even without rows it needs the table's columns.")
    if "organization_id" in columns:
        raise DataError(
            f"The DataFrame for {table} has a column organization_id: remove it. The partition decides the"
            " organization."
        )
    unusable = [column for column in columns if not _is_usable(column)]
    if unusable:
        raise DataError(
            f"The DataFrame for {table} has {len(unusable)} unusable column names: rename these columns. A name has"
            f" letters, digits, _ and spaces only, starts with a letter or _, and has {_MAX_NAME_BYTES} bytes at most."
        )
    if len(set(columns)) < len(columns):
        raise DataError(f"The DataFrame for {table} has two columns of the same name: rename one.")
    return columns


def _is_usable(column: object) -> bool:
    return (
        isinstance(column, str)
        and _COLUMN_NAME.fullmatch(column) is not None
        and len(column.encode()) <= _MAX_NAME_BYTES
    )


def _known(schema: str, name: str) -> Table | None:
    return next((table for table in WRITTEN if (table.schema, table.name) == (schema, name)), None)


def _ensure_table(database: Database, schema: str, name: str, frame: pd.DataFrame) -> None:
    with database.operator() as connection:
        existing = _columns(connection, schema, name)
    existing = existing or _create_table_once(database, schema, name, frame)
    unknown = [column for column in frame.columns if column not in existing]
    if unknown:
        raise DataError(
            f"The table {schema}.{name} has no column {', '.join(unknown)}: add the column to the table, or drop the"
            " table, which the next run then creates again."
        )


def _create_table_once(database: Database, schema: str, name: str, frame: pd.DataFrame) -> dict[str, str]:
    """Create the table unless a concurrent run has created it; return its columns."""
    with database.operator() as connection:
        # Without the lock, concurrent first runs of several organizations would all create the table. The table is
        # looked for under the lock, because the lock's previous holder may have created it.
        key = advisory_key("create table", schema, name)
        connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": key})
        if not _columns(connection, schema, name):
            _create_table(connection, schema, name, frame)
        return _columns(connection, schema, name)


def _columns(connection: Connection, schema: str, name: str) -> dict[str, str]:
    rows = connection.execute(sa.text(sql("writing/table_columns")), {"schema": schema, "name": name})
    return {row.name: row.type for row in rows}


def _create_table(connection: Connection, schema: str, name: str, frame: pd.DataFrame) -> None:
    table = f"{quote(schema)}.{quote(name)}"
    columns = "".join(f", {quote(column)} {_sql_type(frame[column])}" for column in frame.columns)
    connection.exec_driver_sql(f"create schema if not exists {quote(schema)}")
    connection.exec_driver_sql(f"create table {table} (organization_id text not null{columns})")
    isolate_table(connection, quote(schema), table)


def _sql_type(values: "pd.Series[Any]") -> str:
    if pd.api.types.is_bool_dtype(values.dtype):
        return "boolean"
    if pd.api.types.is_integer_dtype(values.dtype):
        return "bigint"
    if pd.api.types.is_float_dtype(values.dtype):
        return "double precision"
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        return "timestamptz"
    if pd.api.types.is_datetime64_dtype(values.dtype):
        return "timestamp"
    return _sql_type_of_objects(values)


def _sql_type_of_objects(values: "pd.Series[Any]") -> str:
    present = values.dropna()
    first: object = present.iloc[0] if len(present) else ""
    if isinstance(first, datetime) and first.tzinfo is None:
        return "timestamp"
    return next((name for kind, name in _SQL_TYPES if isinstance(first, kind)), "text")


def _rows(frame: pd.DataFrame, types: dict[str, str]) -> Iterator[tuple[object, ...]]:
    # pandas stores integers with missing values as floats.
    integers = [
        types.get(column) in _INTEGERS and pd.api.types.is_float_dtype(frame[column].dtype) for column in frame.columns
    ]
    for row in frame.astype(object).itertuples(index=False, name=None):
        yield tuple(_integer(value) if integer else _value(value) for value, integer in zip(row, integers, strict=True))


def _integer(value: object) -> object:
    value = _value(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _value(value: object) -> object:
    if isinstance(value, dict | list):
        return Jsonb(value)
    if isinstance(value, pd.Timestamp):
        return value.to_pydatetime()
    if isinstance(value, pd.Timedelta):
        return value.to_pytimedelta()
    # For an array, isna returns an array.
    return None if pd.isna(value) is True else value  # pyright: ignore[reportArgumentType, reportCallIssue]
