"""pandas DataFrames to and from tenant tables: what an operator's own assets return.

A table that is not there yet is made, under forced row-level security like all others. Knows nothing of how the
pipeline's own tables are computed.
"""

import re
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pandas as pd
import sqlalchemy as sa
from psycopg.types.json import Jsonb
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import DataError
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.merge import Written, quote, replace_all, replace_by_rows
from cliniko_pipeline.postgres.tables import WRITTEN, Table

_COLUMN_NAME = re.compile(r"[^\W\d][\w ]{0,62}")

# In this order: a bool is an int, a datetime a date.
_SQL_TYPES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "boolean"),
    (int, "bigint"),
    (float, "double precision"),
    (Decimal, "numeric"),
    (UUID, "uuid"),
    (datetime, "timestamptz"),
    (date, "date"),
    ((dict, list), "jsonb"),
    (str, "text"),
)


def write(database: Database, organization_id: str, schema: str, name: str, frame: pd.DataFrame) -> Written:
    """Makes the organization's rows of the table exactly the frame's; its index is not stored.

    Raises DataError where the frame has a column `organization_id` (the partition says whose the rows are), or columns
    other than the table's.
    """
    columns = [str(column) for column in frame.columns]
    if "organization_id" in columns:
        raise DataError(
            f"The DataFrame for {schema}.{name} has a column organization_id: leave it out, the partition says"
            " whose the rows are."
        )
    unusable = [column for column in columns if not _COLUMN_NAME.fullmatch(column)]
    if unusable:
        raise DataError(
            f"The DataFrame for {schema}.{name} has {len(unusable)} columns whose names are not made of letters,"
            " digits, _ and spaces: rename them."
        )
    table = _known(schema, name)
    if table is None:
        _ensure_table(database, schema, name, frame)
        table = Table(schema, name, key=(), columns=tuple(columns))
    elif set(columns) != set(table.written):
        raise DataError(
            f"The DataFrame for {schema}.{name} must have the columns {', '.join(table.written)};"
            f" it has {', '.join(columns) or 'none'}."
        )
    rows = _rows(frame.loc[:, list(table.written)])
    with database.organization(organization_id) as connection:
        return replace_by_rows(connection, table, rows) if table.key else replace_all(connection, table, rows)


def read(database: Database, organization_id: str, schema: str, name: str) -> pd.DataFrame:
    """The organization's rows, with all columns but `organization_id`."""
    with database.organization(organization_id) as connection:
        frame = pd.read_sql_query(sa.text(f"select * from {quote(schema)}.{quote(name)}"), connection)
    return frame.drop(columns="organization_id")


def _known(schema: str, name: str) -> Table | None:
    return next((table for table in WRITTEN if (table.schema, table.name) == (schema, name)), None)


def _ensure_table(database: Database, schema: str, name: str, frame: pd.DataFrame) -> None:
    with database.operator() as connection:
        existing = _columns(connection, schema, name)
        if not existing:
            _create_table(connection, schema, name, frame)
            return
    unknown = [str(column) for column in frame.columns if str(column) not in existing]
    if unknown:
        raise DataError(
            f"The table {schema}.{name} has no column {', '.join(unknown)}: add it there, or drop the table and it"
            " is made anew."
        )


def _columns(connection: Connection, schema: str, name: str) -> set[str]:
    rows = connection.execute(sa.text(sql("table_columns")), {"schema": schema, "name": name})
    return set(rows.scalars())


def _create_table(connection: Connection, schema: str, name: str, frame: pd.DataFrame) -> None:
    table = f"{quote(schema)}.{quote(name)}"
    columns = "".join(f", {quote(str(column))} {_sql_type(frame[column])}" for column in frame.columns)
    connection.exec_driver_sql(f"create schema if not exists {quote(schema)}")
    connection.exec_driver_sql(f"create table {table} (organization_id text not null{columns})")
    connection.exec_driver_sql(sql("isolate").format(schema=quote(schema), table=table))


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
    present = values.dropna()
    first: object = present.iloc[0] if len(present) else ""
    return next((name for kind, name in _SQL_TYPES if isinstance(first, kind)), "text")


def _rows(frame: pd.DataFrame) -> Iterator[tuple[object, ...]]:
    for row in frame.astype(object).itertuples(index=False, name=None):
        yield tuple(_value(value) for value in row)


def _value(value: object) -> object:
    if isinstance(value, dict | list):
        return Jsonb(value)
    if isinstance(value, pd.Timestamp):
        return value.to_pydatetime()
    return None if pd.isna(value) else value  # pyright: ignore[reportArgumentType, reportCallIssue]
